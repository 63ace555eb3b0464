# Tests of nixos/lib, in plain Nix:
#
#   nix-instantiate --eval --strict --json nixos/tests
#
# yields { passed, failures }; each failure is { name, expected, found }.
let
  inherit (builtins)
    any attrNames attrValues concatLists concatMap concatStringsSep deepSeq filter fromJSON genList hasAttr head isList length
    listToAttrs map readFile substring tryEval;

  lib = import ../lib;
  address = import ../lib/address.nix;
  full = import ./full.nix;

  test = name: found: expected: { inherit name found expected; };

  minimal = { qubes.work.system = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-work"; };

  # --- every option is set in full.nix, to something else than its default

  # Where a declaration of that shape leaves a field out everywhere, or only ever has its default: the fields' paths.
  unset = path: shape: values:
    if shape.kind == "nullOr" then unset path shape.shape (filter (value: value != null) values)
    else if shape.kind == "listOf" then unset "${path}[]" shape.shape (concatLists values)
    else if shape.kind == "attrsOf" then
      unset "${path}.*" shape.shape (concatMap (value: if isList value then map (item: removeAttrs item [ "name" ]) value else attrValues value) values)
    else if shape.kind == "record" then
      concatMap
        (name:
          let
            field = shape.fields.${name};
            given = map (value: value.${name}) (filter (value: hasAttr name value) values);
            other = filter (value: !(field ? default) || value != field.default) given;
          in
          if other == [ ] then [ "${path}.${name}" ] else unset "${path}.${name}" field.shape given)
        (attrNames shape.fields)
    else [ ];

  # The same for words: each one of a `oneOf` is used.
  words = path: shape: values:
    if shape.kind == "oneOf" then map (word: "${path} = ${word}") (filter (word: !any (value: value == word) values) shape.words)
    else if shape.kind == "nullOr" then words path shape.shape (filter (value: value != null) values)
    else if shape.kind == "listOf" then words "${path}[]" shape.shape (concatLists values)
    else if shape.kind == "attrsOf" then
      words "${path}.*" shape.shape (concatMap (value: if isList value then map (item: removeAttrs item [ "name" ]) value else attrValues value) values)
    else if shape.kind == "record" then
      concatMap
        (name: words "${path}.${name}" shape.fields.${name}.shape
          (map (value: if hasAttr name value then value.${name} else shape.fields.${name}.default or null) (filter (value: hasAttr name value || shape.fields.${name} ? default) values)))
        (attrNames shape.fields)
    else [ ];

  refusals = import ./refusals.nix;

  spec = lib.spec full;

  # --- the example of several hosts

  fleet = import ../examples/fleet.nix {
    systems = listToAttrs (map (name: { inherit name; value = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-${name}"; }) [ "relay" "shop" "vault" ]);
  };
  inherit (fleet) documents;

  tests = [
    (test "full.nix sets every option" (unset "nexus" lib.shapes.nexus [ full ]) [ ])
    (test "full.nix uses every word" (words "nexus" lib.shapes.nexus [ full ]) [ ])
    (test "full.nix has no problems" (lib.problems full) [ ])
    (test "full.json is what full.nix yields" spec (fromJSON (readFile ./full.json)))
    (test "the output has the shape that is published" (lib.documentProblems spec) [ ])
    (test "qubes.schema.json is the schema" (fromJSON (readFile ../qubes.schema.json)) lib.schema)
    (test "an empty declaration is one" (lib.spec { }) { version = 5; host.memory = null; dom0 = { inherit ((lib.spec { }).dom0) agent; containers = { }; policy = { }; }; network = { prefix = "10.137.0.0/16"; disposables = "10.138.0.0/16"; }; qubes = { }; remotes = { }; policy = { }; })
    (test "problems are errors" (tryEval (deepSeq (lib.spec { qubes.work = { }; }) true)).success false)
    (test "text is the same as attributes" (fromJSON (lib.json full)) spec)

    # --- defaults
    (test "memory is 512 MiB and does not grow" [ (lib.spec minimal).qubes.work.memory (lib.spec minimal).qubes.work.max_memory ] [ 512 512 ])
    (test "a qube starts by itself" (lib.spec minimal).qubes.work.autostart true)
    (test "a qube has no network" (lib.spec minimal).qubes.work.networks [ ])
    (test "a system may be a derivation"
      (lib.spec { qubes.work.system = { outPath = minimal.qubes.work.system; }; }).qubes.work.system
      minimal.qubes.work.system)
    (test "the private volume has a place"
      (lib.spec { qubes.work = minimal.qubes.work // { private.size = 64; }; }).qubes.work.private
      { size = 64; target = "/var/lib/nxl/volumes/work.raw"; vdev = "xvdb"; format = null; })
    (test "a qube has five minutes to come up, and one that is not ours does not say that it did"
      (map (name: spec.qubes.${name}.ready) [ "shop" "vault" "whonix" ])
      [ { timeout = 90; } { timeout = 300; } null ])

    # --- network
    (test "who is a netvm is a driver domain" (map (name: spec.qubes.${name}.driver_domain) [ "net" "shop" ]) [ true false ])
    (test "addresses differ"
      (length (attrNames (listToAttrs (concatMap (qube: map (nic: { name = nic.mac; value = null; }) qube.networks) (attrValues spec.qubes)))))
      3)
    (test "who has a netvm has an address there, and an interface on a bridge has none"
      (map (name: map (nic: nic.ip) spec.qubes.${name}.networks) [ "net" "shop" "vault" "whonix" ])
      [ [ null ] [ "10.20.0.7" ] [ ] [ "10.20.244.70" ] ])
    (test "an address depends on nothing but the qube's name and the prefix"
      (map (prefix: address.ofName prefix "whonix") [ "10.20.0.0/16" "10.137.0.0/16" "192.168.7.0/24" "10.0.0.0/28" ])
      [ "10.20.244.70" "10.137.244.70" "192.168.7.170" "10.0.0.10" ])
    (test "no name gets the first or the last of a prefix"
      (filter (name: !address.within "10.0.0.0/28" (address.ofName "10.0.0.0/28" name)) (genList (number: "qube${toString number}") 300))
      [ ])
    (test "and all others are given"
      (length (attrNames (builtins.groupBy (address.ofName "10.0.0.0/28") (genList (number: "qube${toString number}") 300))))
      14)
    (test "addresses as numbers and back" (map (text: address.text (address.number text)) [ "0.0.0.0" "10.137.255.254" "255.255.255.255" ])
      [ "0.0.0.0" "10.137.255.254" "255.255.255.255" ])

    # --- policy
    (test "rules are lines, each with whoever decides it" spec.policy {
      "30-user.policy" = "nexus.Print * @tag:office net ask\n";
      "50-nexus.policy" = ''
        nexus.Time * @anyvm dom0 allow
        * * whonix @anyvm deny
        nexus.Mail * whonix @default allow target=vault user=mail notify=yes autostart=no
        nexus.Clip +x @anyvm @anyvm ask default_target=vault
        nexus.Fetch +list dom0:update @default ask target=net default_target=net
        nexus.Relay * dom0:backup net allow user=guest autostart=yes
        nexus.Relay +updates dom0:update net allow
        nexus.Pick +one shop @anyvm ask default_target=net
        nexus.View * shop @default allow target=@dispvm:viewer user=guest autostart=yes
        nexus.View * shop @dispvm ask
        nexus.Status * shop dom0:update allow
        nexus.Resolve * shop:front net allow
        nexus.Sign +key shop:front vault:gpg ask
      '';
      "90-nexus.policy" = ''
        qubes.VMExec * @adminvm @anyvm allow
        nexus.ExecAs * @adminvm @anyvm allow
        nexus.Logs * @adminvm @anyvm allow
        nexus.Container * @adminvm @anyvm allow
        qubes.VMExec * @adminvm shop:* allow
        nexus.ExecAs * @adminvm shop:* allow
        nexus.Logs * @adminvm shop:* allow
        qubes.VMExec * @adminvm vault:* allow
        nexus.ExecAs * @adminvm vault:* allow
        nexus.Logs * @adminvm vault:* allow
      '';
    })
    (test "calls within a qube are its own" spec.qubes.shop.policy {
      "50-nexus.policy" = ''
        nexus.Log * shop:* shop:orders deny notify=no
        nexus.Log + shop shop:orders allow
        nexus.Query +orders shop:front shop:orders allow
      '';
    })
    (test "calls between dom0 and its containers are its agent's" spec.dom0.policy {
      "50-nexus.policy" = ''
        nexus.Fetch * dom0:* dom0 deny notify=no
        nexus.Keep * dom0:update dom0:backup ask
      '';
      "90-nexus.policy" = ''
        qubes.VMExec * @adminvm dom0:* allow
        nexus.ExecAs * @adminvm dom0:* allow
        nexus.Logs * @adminvm dom0:* allow
        nexus.Container * @adminvm @adminvm allow
      '';
    })
    (test "text need not end in a line end" (lib.spec { policy.text = "q.A * * dom0 allow"; }).policy."50-nexus.policy" "q.A * * dom0 allow\n")

    (test "a policy may be long"
      (let long = concatStringsSep "" (genList (number: "q.A +${toString number} work vault allow\n") 20000); in
        (lib.spec { policy.text = long; policy.files."10-long.policy" = long; }).policy."50-nexus.policy" == long)
      true)

    # --- what is put into a qube
    (test "the settings of services" (let made = lib.ofQube full "shop"; in [ made.rpcConfig made.containers.front.rpcConfig made.containers.orders.rpcConfig ]) [
      { "nexus.Report" = "exit-on-service-eof=true\nexit-on-client-eof=true\n"; }
      { "nexus.Http" = "exit-on-service-eof=true\n"; }
      { "nexus.Query" = "skip-service-descriptor=true\nexit-on-client-eof=true\n"; "nexus.Log" = "skip-service-descriptor=true\n"; }
    ])
    (test "a socket may want to know who calls" (lib.ofQube full "net").rpcConfig { })
  ]
  ++ [
    # --- nixos/examples/fleet.nix
    (test "a fleet is several hosts out of one file" (attrNames documents) [ "berlin" "lisbon" "oslo" ])
    (test "a fleet's declarations have no problems" (concatMap lib.problems (attrValues fleet.declarations)) [ ])
    (test "a fleet's documents have the shape that is published" (concatMap lib.documentProblems (attrValues documents)) [ ])
    (test "hosts of a fleet differ where they are to" (map (host: documents.${host}.qubes.shop.memory) [ "berlin" "oslo" ]) [ 768 512 ])
    (test "a call between hosts goes to a relay" documents.berlin.remotes
      { lisbon-vault = { relay = "relay"; service = "nexus.Relay"; tags = [ "elsewhere" ]; }; })
    (test "both hosts decide a call between them, and nothing else comes in" (map (host: documents.${host}.policy."50-nexus.policy") [ "berlin" "lisbon" ]) [
      ''
        * * @tag:elsewhere @anyvm deny
        nexus.Sign * shop lisbon-vault allow
      ''
      ''
        nexus.Sign * berlin-shop vault allow
        nexus.Sign * oslo-shop vault allow
        * * @tag:elsewhere @anyvm deny
      ''
    ])
    (test "each host gets the closures of its own qubes" (map (path: substring 57 9 path) fleet.closures.lisbon) [ "relay" "vault" ])
  ]
  ++ map (refusal: test "refused: ${head refusal.says}" (lib.problems refusal.declaration) refusal.says) refusals
  ++ import ./modules.nix { inherit test lib; }
  ++ import ./guests.nix { inherit test; };

  failures = filter (one: one.found != one.expected) tests;
in
{
  passed = length tests - length failures;
  inherit failures;
}
