# A shape as JSON Schema (draft 2020-12).
let
  inherit (builtins) attrNames filter listToAttrs map;

  whole = pattern: "^(${pattern})$";

  schemas = {
    int = { min, max, ... }: { type = "integer"; minimum = min; maximum = max; };
    bool = _: { type = "boolean"; };
    text = _: { type = "string"; };
    matching = { pattern, what, ... }: { type = "string"; pattern = whole pattern; description = what; };
    oneOf = { words, ... }: { enum = words; };
    nullOr = { shape, ... }: { anyOf = [ { type = "null"; } (schema shape) ]; };
    listOf = { shape, ... }: { type = "array"; items = schema shape; };
    attrsOf = { key, shape, ... }: {
      type = "object";
      propertyNames = { pattern = whole key.pattern; };
      additionalProperties = schema shape;
    };
    record = { fields, ... }: {
      type = "object";
      properties = builtins.mapAttrs (_: field: schema field.shape // { inherit (field) description; }) fields;
      required = filter (name: !(fields.${name} ? default)) (attrNames fields);
      additionalProperties = false;
    };
  };

  schema = shape: schemas.${shape.kind} shape;
in
schema
