# What a value may be, as data. Three readers go by it: `read.nix` checks a declaration and fills in
# defaults, `schema.nix` turns it into JSON Schema, and the modules turn it into options of NixOS'
# module system. So an option is written down once.
rec {
  # Whole numbers from `min` to `max`, both included.
  int = min: max: { kind = "int"; inherit min max; };
  bool = { kind = "bool"; };
  # Any text: also a path or a derivation, which is its store path.
  text = { kind = "text"; };
  # Text of which all matches `pattern` (POSIX extended, and the same to JSON Schema). `what` says it in words.
  matching = pattern: what: { kind = "matching"; inherit pattern what; };
  oneOf = words: { kind = "oneOf"; inherit words; };
  nullOr = shape: { kind = "nullOr"; inherit shape; };
  listOf = shape: { kind = "listOf"; inherit shape; };
  # Attributes whose names match `key`. A list of records that have a `name` is the same, so that what
  # is put together from several lists can be checked for two of one name.
  attrsOf = key: shape: { kind = "attrsOf"; inherit key shape; };
  # Attributes of these names and no others.
  record = fields: { kind = "record"; inherit fields; };

  required = shape: description: { inherit shape description; };
  optional = default: shape: description: { inherit default shape description; };
}
