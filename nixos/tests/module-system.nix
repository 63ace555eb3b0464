# As much of nixpkgs' module system as evaluates our modules, for tests where nixpkgs is not at hand: options with types and
# defaults, properties (mkIf, mkMerge, mkForce, mkDefault), imports, submodules. Options that nobody declares, which are NixOS'
# own, take anything.
let
  inherit (builtins)
    all any attrNames catAttrs concatLists concatMap concatStringsSep elem filter foldl' head isAttrs isBool isFunction isInt isList
    isPath isString length listToAttrs map mapAttrs removeAttrs;

  # --- properties

  property = type: attributes: { _type = type; } // attributes;
  is = type: value: isAttrs value && (value._type or null) == type;
  mkIf = condition: content: property "if" { inherit condition content; };
  mkMerge = contents: property "merge" { inherit contents; };
  mkOverride = priority: content: property "override" { inherit priority content; };

  # A definition that stands for several attributes, as one for each of them.
  pushDown = config:
    if is "merge" config then concatMap pushDown config.contents
    else if is "if" config then map (mapAttrs (_: mkIf config.condition)) (pushDown config.content)
    else if is "override" config then map (mapAttrs (_: mkOverride config.priority)) (pushDown config.content)
    else [ config ];

  # The definitions that count: [ { value, priority } ].
  discharge = priority: definition:
    if is "merge" definition then concatMap (discharge priority) definition.contents
    else if is "if" definition then (if definition.condition then discharge priority definition.content else [ ])
    else if is "override" definition then discharge definition.priority definition.content
    else [ { inherit priority; value = definition; } ];

  strongest = definitions:
    let
      found = concatMap (discharge 100) definitions;
      priority = foldl' (least: one: if one.priority < least then one.priority else least) 10000 found;
    in
    map (one: one.value) (filter (one: one.priority == priority) found);

  # --- types: { name, check, merge }

  one = where: values:
    if length values == 1 || all (value: value == head values) values then head values
    else throw "${where}: is defined several times";

  simple = name: check: {
    inherit name;
    merge = where: values:
      let value = one where values; in
      if check value then value else throw "${where}: ${name} is wanted";
  };

  merged = where: type: definitions: type.merge where (strongest definitions);

  types = {
    str = simple "str" isString;
    bool = simple "bool" isBool;
    raw = simple "raw" (_: true);
    package = simple "package" (value: isAttrs value && value ? outPath);
    lines = { name = "lines"; merge = _: concatStringsSep "\n"; };
    ints.between = min: max: simple "int" (value: isInt value && value >= min && value <= max);
    enum = words: simple "enum" (value: elem value words);
    nullOr = type: {
      name = "nullOr";
      merge = where: values: if all (value: value == null) values then null else type.merge where values;
    };
    listOf = type: {
      name = "listOf";
      merge = where: values: map (item: merged "${where}[]" type [ item ]) (concatLists values);
    };
    attrsOf = type: {
      name = "attrsOf";
      merge = where: values:
        let pushed = concatMap pushDown values; in
        mapAttrs (name: definitions: merged "${where}.${name}" type definitions) (zip pushed);
    };
    submodule = module: {
      name = "submodule";
      merge = where: values: (evalModules { modules = [ module ] ++ map (value: { config = value; }) values; }).config;
    };
    deferredModule = { name = "deferredModule"; merge = _: values: { imports = values; }; };
    mkOptionType = { name, check, merge, ... }: {
      inherit name;
      merge = where: values:
        if all check values then merge [ where ] (map (value: { file = "test"; inherit value; }) values)
        else throw "${where}: ${name} is wanted";
    };
  };

  # { NAME = [ VALUES ]; } of all that have the attribute.
  zip = list: builtins.zipAttrsWith (_: values: values) list;

  # --- evaluation

  isOption = value: isAttrs value && (value._type or null) == "option";

  # Options nested in options, of several modules.
  mergeOptions = list:
    mapAttrs (_: values: if any isOption values then head (filter isOption values) else mergeOptions values) (zip list);

  # NixOS' own options: sets are merged, lists appended, of others the strongest counts.
  anything = definitions:
    let
      values = strongest definitions;
      pushed = concatMap pushDown (map (definition: definition) definitions);
    in
    if values == [ ] then { }
    else if all (value: isAttrs value && !(value ? outPath)) values then mapAttrs (_: anything) (zip (concatMap pushDown values))
    else if all isList values then concatLists values
    else head values;

  level = where: options: configs:
    let
      pushed = concatMap pushDown configs;
      defined = zip pushed;
      known = mapAttrs
        (name: option:
          let
            here = if where == "" then name else "${where}.${name}";
            definitions = defined.${name} or [ ];
          in
          if !isOption option then level here option definitions
          else if concatMap (discharge 100) definitions != [ ] then
            (if option.readOnly or false then throw "${here}: is read-only" else merged here option.type definitions)
          else if option ? default then
            (if option.type.name == "submodule" then option.type.merge here [ option.default ] else option.default)
          else throw "${here}: is used and not defined")
        options;
      free = mapAttrs (_: anything) (removeAttrs defined (attrNames options));
    in
    free // known;

  collect = arguments: module:
    let
      value = if isPath module || isString module then import module else module;
      called = if isFunction value then value arguments else value;
      split = called ? config || called ? options;
      own = {
        options = called.options or { };
        config = if split then called.config or { } else removeAttrs called [ "imports" ];
      };
    in
    concatMap (collect arguments) (called.imports or [ ]) ++ [ own ];

  evalModules = { modules, specialArgs ? { } }:
    let
      collected = concatMap (collect ({ inherit config lib; } // specialArgs)) modules;
      config = level "" (mergeOptions (catAttrs "options" collected)) (catAttrs "config" collected);
    in
    { inherit config; };

  lib = {
    inherit evalModules mkIf mkMerge mkOverride types attrNames concatLists;
    inherit (builtins) mapAttrs;
    mkOption = attributes: property "option" attributes;
    mkEnableOption = what: property "option" { type = types.bool; default = false; description = "Whether to enable ${what}."; };
    mkForce = mkOverride 50;
    mkDefault = mkOverride 1000;
    recursiveUpdate = a: b: a // mapAttrs (name: value: if isAttrs value && isAttrs (a.${name} or null) && !(value ? _type) then lib.recursiveUpdate a.${name} value else value) b;
    literalExpression = text: text;
    optional = condition: value: if condition then [ value ] else [ ];
    nameValuePair = name: value: { inherit name value; };
    mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    filterAttrs = keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
    options.mergeEqualOption = where: definitions: one (concatStringsSep "." where) (map (one: one.value) definitions);
  };
in
lib
