# Shapes (../lib/shape.nix) as options of nixpkgs' module system: what a declaration may have is written down in
# ../lib/declaration.nix alone.
{ lib }:

let
  inherit (builtins) attrNames filter listToAttrs map mapAttrs match unsafeDiscardStringContext;

  types = {
    int = { min, max, ... }: lib.types.ints.between min max;
    bool = _: lib.types.bool;
    text = _: lib.types.lines;
    matching = { pattern, what, ... }: lib.types.mkOptionType {
      name = "matching";
      description = what;
      check = value:
        (builtins.isString value || (builtins.isAttrs value && value ? outPath))
        && match pattern (unsafeDiscardStringContext "${value}") != null;
      merge = lib.options.mergeEqualOption;
    };
    oneOf = { words, ... }: lib.types.enum words;
    nullOr = { shape, ... }: lib.types.nullOr (type shape);
    listOf = { shape, ... }: lib.types.listOf (type shape);
    # That a name is one, is checked when the declaration is evaluated: the module system has no types of names.
    attrsOf = { shape, ... }: lib.types.attrsOf (type shape);
    record = { fields, ... }: lib.types.submodule { options = options fields; };
  };

  type = shape: types.${shape.kind} shape;

  option = field:
    lib.mkOption ({ type = type field.shape; inherit (field) description; }
      // (if field ? default then { default = defaultOf field; } else { }));

  # A record's default is that of its fields, so that one of them can be set alone.
  defaultOf = field: if field.shape.kind == "record" then { } else field.default;

  options = fields: mapAttrs (_: option) fields;
in
{
  inherit type option options;
}
