# IPv4 addresses, as text and as numbers, and who gets which. The words that they are made of: ./words.nix.
let
  inherit (builtins) concatStringsSep elemAt filter foldl' fromJSON fromTOML hashString isString map split substring;

  mod = a: b: a - b * (a / b);
  power = exponent: if exponent == 0 then 1 else 2 * power (exponent - 1);
  parts = separator: text: filter isString (split separator text);
in
rec {
  number = address: foldl' (sum: part: sum * 256 + fromJSON part) 0 (parts "[.]" address);
  text = number: concatStringsSep "." (map (place: toString (mod (number / place) 256)) [ 16777216 65536 256 1 ]);

  # Of "10.137.0.0/16": the first address, how many there are, and the text that says the same without what it leaves out.
  range = prefix:
    let
      halves = parts "/" prefix;
      size = power (32 - fromJSON (elemAt halves 1));
      given = number (elemAt halves 0);
    in
    rec {
      first = given - mod given size;
      inherit size;
      text' = "${text first}/${elemAt halves 1}";
    };

  # Whether it is one that a qube can have: the first and the last of a range mean something else.
  within = prefix: address:
    let
      all = range prefix;
      place = number address - all.first;
    in
    place > 0 && place < all.size - 1;

  overlap = one: other:
    let
      a = range one;
      b = range other;
    in
    a.first < b.first + b.size && b.first < a.first + a.size;

  # A qube's, which depends on nothing but its name: another qube that comes or goes does not change it.
  ofName = prefix: name:
    let
      all = range prefix;
      drawn = (fromTOML "number = 0x${substring 0 8 (hashString "sha256" name)}").number;
    in
    text (all.first + 1 + mod drawn (all.size - 2));

  # Of a qube as it is declared; null without a netvm, as nobody would know it then.
  ofQube = nexus: name: qube:
    if qube.netvm == null then null
    else if qube.ip != null then qube.ip
    else ofName nexus.network.prefix name;
}
