# The units of the guests that the testbed boots (nixos/testing/systemd) beside those that our modules declare, evaluated without
# anything of NixOS': whatever the modules say must be in the guest's unit, word by word, and nothing else of theirs.
{ test }:

let
  inherit (builtins)
    attrNames concatLists concatMap concatStringsSep elem filter genList hashString head isBool isList isString length map mapAttrs removeAttrs
    split;
  modules = import ./module-system.nix;
  nexus = import ../lib;

  # A derivation is known by its name and by what it is made of.
  made = name: attributes: attributes // {
    inherit name;
    outPath = "/nix/store/${builtins.substring 0 32 (hashString "sha256" (attributes.text or name))}-${name}";
  };
  shell = { run = name: attributes: _: made name attributes; package = made "busybox" { }; };
  writeText = name: text: made name { inherit text; };
  pkgs = {
    inherit (shell) run;
    inherit writeText;
    writeShellScriptBin = writeText;
    stdenv.hostPlatform.system = "x86_64-linux";
    closureInfo = _: made "closure-info" { };
    programs = name: _: made name { };
  } // builtins.listToAttrs (map (name: { inherit name; value = made name { }; })
    [ "bash" "busybox" "curl" "e2fsprogs" "gnupg" "htop" "iproute2" "nexus" "nftables" "sqlite" "systemd" "util-linux" "xen" "xenstore" ]);

  guests = import ../testing/systemd { inherit shell pkgs; kernel = made "kernel" { }; };

  examples = { demo = import ../examples/demo.nix; network = import ../examples/network.nix; };
  declaration = example: example // {
    qubes = mapAttrs
      (name: qube: removeAttrs qube [ "config" ] // {
        system = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-${name}";
        containers = mapAttrs (_: container: removeAttrs container [ "config" ]) qube.containers or { };
        users = if name == "shop" then [ "root" ] else [ ];
      })
      example.qubes;
  };
  ofQubeIn = example: name: [
    ../modules/qube.nix
    {
      nexus.qube = {
        inherit name;
        declaration = declaration example;
        agent = pkgs.nexus;
        containers = mapAttrs (_: container: container.config or { }) example.qubes.${name}.containers or { };
      };
    }
    (example.qubes.${name}.config or { })
  ];
  ofQube = ofQubeIn examples.demo;

  # The modules alone: NixOS' options take whatever they are given.
  alone = list: (modules.evalModules {
    modules = list ++ [ bare ];
    specialArgs = { inherit pkgs; };
  }).config;
  bare = { lib, ... }: {
    options.containers = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule {
        options.config = lib.mkOption { type = { name = "system"; merge = _: values: alone values; }; };
      });
      default = { };
    };
    config = { systemd.package = pkgs.systemd; system.build.toplevel = made "nixos-system" { }; };
  };

  # Store paths differ by what a system consists of.
  plain = text: concatStringsSep "/nix/store/*" (filter isString (split "/nix/store/[0-9a-z]*-[^/ \n\"]*" text));
  word = value: if isBool value then (if value then "true" else "false") else toString value;
  words = value: if isList value then map word value else [ (word value) ];

  sections = { services = "serviceConfig"; sockets = "socketConfig"; slices = "sliceConfig"; };
  suffix = { services = "service"; sockets = "socket"; slices = "slice"; };
  ordering = { after = "After"; before = "Before"; requires = "Requires"; wants = "Wants"; description = "Description"; };

  # { unit, lines, words } for each unit that the modules declare: lines that it has, and words that are among those of a line.
  declared = systemd: concatMap
    (kind: map
      (name:
        let unit = systemd.${kind}.${name}; section = unit.${sections.${kind}} or { }; in
        {
          unit = "${name}.${suffix.${kind}}";
          enable = unit.enable or true;
          wantedBy = unit.wantedBy or [ ];
          script = unit.script or null;
          lines = concatMap (key: map (value: "${key}=${value}") (words section.${key})) (attrNames section);
          among = concatMap (key: map (value: { key = ordering.${key}; inherit value; }) (words unit.${key})) (filter (key: unit ? ${key}) (attrNames ordering));
        })
      (attrNames (systemd.${kind} or { })))
    (attrNames sections);

  linesOf = text: filter (line: isString line && line != "") (split "\n" text);
  valuesOf = key: text: concatLists (map
    (line: let parts = builtins.match "${key}=(.*)" line; in if parts == null then [ ] else filter isString (split " " (head parts)))
    (linesOf text));

  # What of a unit that the modules declare is missing in the guest's.
  missing = units: one:
    let unit = units.${one.unit} or null; lines = map plain (linesOf unit.text); in
    if unit == null then [ "${one.unit} is missing" ]
    else if one.enable != unit.enable then [ "${one.unit}: enable" ]
    else if !one.enable then [ ]
    else
      map (line: "${one.unit}: ${line}") (filter (line: !elem (plain line) lines) one.lines)
      ++ map ({ key, value }: "${one.unit}: ${key}=${value}")
        (filter ({ key, value }: if key == "Description" then !elem "Description=${value}" lines else !elem value (valuesOf key unit.text)) one.among)
      ++ map (target: "${one.unit}: WantedBy=${target}") (filter (target: !elem target unit.wantedBy) one.wantedBy)
      ++ (if one.script == null then [ ] else
        if plain unit.job == plain "set -e\n\n${one.script}\n" then [ ] else [ "${one.unit}: script" ]);

  compared = example: name:
    let
      guest = (guests.evalConfig { modules = ofQubeIn example name; }).config;
      own = alone (ofQubeIn example name);
      containers = attrNames own.containers;
    in
    concatMap (missing (guests.units guest)) (declared own.systemd)
    ++ concatMap
      (container: map (what: "${container}: ${what}")
        (concatMap (missing (guests.units guest.containers.${container}.config)) (declared own.containers.${container}.config.systemd)))
      containers;

  count = name: let own = alone (ofQube name); in map (one: one.unit) (declared own.systemd);
  network = name:
    let
      own = alone (ofQubeIn examples.network name);
      services = own.systemd.services;
    in
    {
      units = filter (unit: elem unit [ "nexus-netvm" "nexus-network" ]) (attrNames services);
      modules = filter (module: module == "xen-netback") own.boot.kernelModules;
      servers = own.networking.nameservers or [ ];
    };
in
[
  (test "the guests' units are those that the modules declare" (map (compared examples.demo) [ "shop" "vault" ]) [ [ ] [ ] ])
  (test "those of a netvm and of its clients, too" (map (compared examples.network) [ "net" "mail" "web" ]) [ [ ] [ ] [ ] ])
  (test "which are these" (count "shop") [
    "container@front.service"
    "container@orders.service"
    "getty@tty1.service"
    "nexus-agent.service"
    "nexus-as-user@.service" "nexus-container@.service" "nexus-memory.service" "nexus-ready.service"
    "serial-getty@hvc0.service"
    "nexus-containers.slice"
    "nexus-as-user.socket" "nexus-container.socket"
  ])
  (test "a netvm serves its clients, and a client follows what dom0 gives it" (map network [ "net" "mail" ]) [
    { units = [ "nexus-netvm" ]; modules = [ "xen-netback" ]; servers = [ ]; }
    { units = [ "nexus-network" ]; modules = [ ]; servers = [ "9.9.9.9" ]; }
  ])
  (test "a container that shares its qube's network asks the same name servers" (map
    (name: (alone (ofQubeIn examples.network "web")).containers.${name}.config.networking.nameservers or [ ])
    [ "browser" "notes" ]) [ [ "9.9.9.9" ] [ ] ])
  (test "no qube's address is in a closure"
    (map (name: length (split "10[.]137[.]" (alone (ofQubeIn examples.network name)).systemd.services.${if name == "net" then "nexus-netvm" else "nexus-network"}.script)) [ "net" "web" ])
    [ 1 1 ])
  (test "a unit that differs would be found"
    (let
      guest = (guests.evalConfig { modules = ofQube "shop" ++ [ ({ lib, ... }: { systemd.services."container@front".serviceConfig.MemoryMax = lib.mkForce "1G"; systemd.services."container@orders".script = lib.mkOverride 40 "exit 0"; }) ]; }).config;
    in
    concatMap (missing (guests.units guest)) (declared (alone (ofQube "shop")).systemd))
    [ "container@front.service: MemoryMax=256M" "container@orders.service: script" ])
]
