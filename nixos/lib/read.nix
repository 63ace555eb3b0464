# Reads a value by its shape: { value, problems }. `value` has all defaults in it; each problem is one
# line that begins with the attribute. Nothing is thrown: whoever asks gets all problems at once.
let
  inherit (builtins)
    all attrNames concatLists concatMap concatStringsSep elem elemAt filter genList hasAttr head isAttrs isBool isInt
    isList isPath isString length listToAttrs map match toJSON typeOf unsafeDiscardStringContext;

  good = value: { inherit value; problems = [ ]; };
  bad = path: message: { value = null; problems = [ "${path}: ${message}" ]; };

  isText = value: isString value || isPath value || (isAttrs value && value ? outPath);

  show = value:
    if isString value then toJSON (unsafeDiscardStringContext value)
    else if isInt value || isBool value || value == null then toJSON value
    else {
      list = "a list";
      set = "a set of attributes";
      lambda = "a function";
      float = "a number with a fraction";
      path = "a path";
    }.${typeOf value} or (typeOf value);

  # As Nix writes an attribute's path.
  child = path: name: "${path}.${if match "[A-Za-z_][A-Za-z0-9_'-]*" name != null then name else toJSON name}";

  matches = pattern: text: match pattern (unsafeDiscardStringContext text) != null;

  readers = {
    int = path: { min, max, ... }: value:
      if !isInt value then bad path "${show value} is no whole number"
      else if value < min || value > max then
        bad path "${toString value} is not within ${toString min} to ${toString max}"
      else good value;

    bool = path: _: value: if isBool value then good value else bad path "${show value} is neither true nor false";

    text = path: _: value:
      if !isText value then bad path "${show value} is no text"
      else good "${value}";

    matching = path: { pattern, what, ... }: value:
      if !isText value then bad path "${show value} is no text"
      else if !matches pattern "${value}" then bad path "${show "${value}"} is not ${what}"
      else good "${value}";

    oneOf = path: { words, ... }: value:
      if elem value words then good value
      else bad path "${show value} is none of ${concatStringsSep ", " words}";

    nullOr = path: { shape, ... }: value: if value == null then good null else read path shape value;

    listOf = path: { shape, ... }: value:
      if !isList value then bad path "${show value} is no list"
      else
        let items = genList (at: read "${path}[${toString at}]" shape (elemAt value at)) (length value);
        in { value = map (item: item.value) items; problems = concatMap (item: item.problems) items; };

    attrsOf = path: { key, shape, ... }: value:
      if isList value then byName path key shape value
      else if !isAttrs value then bad path "${show value} is no set of attributes"
      else
        let
          names = attrNames value;
          wrong = filter (name: !matches key.pattern name) names;
          items = map (name: { inherit name; result = read (child path name) shape value.${name}; }) names;
        in
        {
          value = listToAttrs (map ({ name, result }: { inherit name; inherit (result) value; }) items);
          problems =
            map (name: "${child path name}: ${toJSON name} is not ${key.what}") wrong
            ++ concatMap (item: item.result.problems) items;
        };

    record = path: { fields, ... }: value:
      if !isAttrs value then bad path "${show value} is no set of attributes"
      else
        let
          unknown = filter (name: !hasAttr name fields) (attrNames value);
          one = name:
            let field = fields.${name}; in
            if hasAttr name value then read (child path name) field.shape value.${name}
            else if field ? default then good field.default
            else bad (child path name) "is missing";
          results = map (name: { inherit name; result = one name; }) (attrNames fields);
        in
        {
          value = listToAttrs (map ({ name, result }: { inherit name; inherit (result) value; }) results);
          problems =
            map (name: "${child path name}: there is no such attribute; there are ${concatStringsSep ", " (attrNames fields)}")
              unknown
            ++ concatMap (item: item.result.problems) results;
        };
  };

  # A list of records that have a `name`.
  byName = path: key: shape: list:
    let
      nameOf = item: if isAttrs item && item ? name && isString item.name then item.name else null;
      names = map nameOf list;
      nameless = filter (at: elemAt names at == null) (genList (at: at) (length list));
      count = name: length (filter (other: other == name) names);
      distinct = attrNames (listToAttrs (map (name: { inherit name; value = null; }) (filter (name: name != null) names)));
      doubled = filter (name: count name > 1) distinct;
      set = listToAttrs (map (item: { inherit (item) name; value = removeAttrs item [ "name" ]; }) list);
    in
    if nameless != [ ] then bad "${path}[${toString (head nameless)}]" "has no name"
    else if doubled != [ ] then
      { value = null; problems = map (name: "${child path name}: ${toString (count name)} have this name") doubled; }
    else readers.attrsOf path { inherit key shape; } set;

  read = path: shape: value: readers.${shape.kind} path shape value;
in
{
  inherit read child matches;
}
