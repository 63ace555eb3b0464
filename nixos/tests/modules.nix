# The modules, evaluated by tests/module-system.nix.
{ test, lib }:

let
  inherit (builtins) attrNames deepSeq elem filter fromJSON head isString match readFile replaceStrings split stringLength tryEval;
  system = import ./module-system.nix;
  containers = import ../modules/containers.nix;
  full = import ./full.nix;

  toplevel = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system";
  pkgs = {
    path = "/nowhere";
    stdenv.hostPlatform.system = "x86_64-linux";
    writeText = name: text: { inherit name text; outPath = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-${name}"; };
    lib.makeLibraryPath = packages: builtins.concatStringsSep ":" (map (package: "${package}/lib") packages);
    rustPlatform = {
      buildRustPackage = attributes: attributes // { outPath = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-tesseraqt"; };
      bindgenHook = "bindgen-hook";
    };
    pkg-config = "pkg-config";
    iproute2 = "iproute2";
    nftables = "nftables";
    xen = { outPath = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-xen"; };
    closureInfo = { rootPaths }: { inherit rootPaths; outPath = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-closure-info"; };
  };
  package = { outPath = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-tesseraqt"; };

  # What NixOS has, and the modules look at.
  nixos = name: {
    config = {
      systemd.package = { outPath = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-systemd"; };
      system.build.toplevel = { outPath = "${toplevel}-${name}"; };
    };
  };

  # NixOS evaluates the configuration of a container, too.
  withContainers = { config, lib, ... }: {
    options.containers = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule {
        options.config = lib.mkOption {
          type = {
            name = "system";
            merge = _: values: (system.evalModules { modules = [ (nixos "container") ] ++ values; specialArgs = { inherit pkgs; }; }).config // {
              # What NixOS' own option of the name shows of it.
              config = (system.evalModules { modules = [ (nixos "container") ] ++ values; specialArgs = { inherit pkgs; }; }).config;
            };
          };
        };
      });
      default = { };
    };
  };

  evalConfig = { modules, ... }:
    let name = (head (filter (module: module ? nexus) modules)).nexus.qube.name; in
    system.evalModules { modules = [ (nixos name) withContainers ] ++ modules; specialArgs = { inherit pkgs; }; };

  dom0 = nexus: (system.evalModules {
    modules = [ ../modules/dom0.nix (nixos "dom0") { nexus = { inherit evalConfig; enable = true; } // nexus; } ];
    specialArgs = { inherit pkgs; };
  }).config;

  # dom0 with containers of its own.
  ofDom0 = (system.evalModules {
    modules = [
      ../modules/dom0.nix
      (nixos "dom0")
      withContainers
      {
        nexus = {
          inherit evalConfig package;
          enable = true;
          dom0.containers.update = {
            config.environment.systemPackages = [ "curl" ];
            services."nexus.Put".program = "/bin/put";
            calls = [ { service = "nexus.Query"; target = "work:db"; } { service = "nexus.Note"; target = "dom0"; } ];
            persist = [ "/var/cache/update" ];
            privateNetwork = false;
          };
          qubes.work = { inherit (demo.qubes.work) containers private; };
        };
      }
    ];
    specialArgs = { inherit pkgs; };
  }).config;
  updateScript = ofDom0.systemd.services."container@update".script;

  # A declaration as the module system has it: containers are sets.
  listless = declaration: declaration // {
    qubes = declaration.qubes // {
      vault = declaration.qubes.vault // { containers.gpg.services."nexus.Sign".program = "/bin/sign"; };
    };
  };

  # The unit of a dom0 that is no NixOS.
  unitFile = ../../nxl/systemd/nexus-apply.service;
  applyUnit = filter isString (split "\n" (readFile unitFile));
  apply = ofFull.systemd.services.nexus-apply.serviceConfig;

  ofFull = dom0 (listless full // { inherit package; });

  demo = {
    qubes.work = {
      config = { boot.kernelParams = [ "quiet" ]; services.openssh.enable = true; };
      private.size = 256;
      services."nexus.Open" = { kind = "socket"; socket = "/run/open"; };
      containers.web = {
        config = { environment.systemPackages = [ "curl" ]; };
        calls = [ { service = "nexus.Query"; target = ":db"; } ];
        capabilities = [ "CAP_NET_BIND_SERVICE" ];
      };
      containers.db = {
        services."nexus.Query".program = "/bin/query";
        resources.memory = 64;
        persist = [ "/var/lib/db" ];
        privateNetwork = false;
      };
    };
    inherit package;
  };
  ofDemo = dom0 demo;
  work = (evalConfig {
    modules = [ ../modules/qube.nix { nexus.qube = { name = "work"; agent = package; containers.web.environment.systemPackages = [ "curl" ]; declaration = { qubes.work = removeAttrs demo.qubes.work [ "config" "containers" ] // { system = toplevel; containers = builtins.mapAttrs (_: container: removeAttrs container [ "config" ]) demo.qubes.work.containers; }; }; }; } demo.qubes.work.config ];
  }).config;
  script = work.systemd.services."container@db".script;

  # --- for a dom0 that is no NixOS, and for microvm.nix

  more = {
    stringToCharacters = text: filter (part: isString part && part != "") (split "" text);
    hasPrefix = prefix: text: builtins.substring 0 (stringLength prefix) text == prefix;
    imap0 = f: list: builtins.genList (number: f number (builtins.elemAt list number)) (builtins.length list);
    concatMapStringsSep = separator: f: list: builtins.concatStringsSep separator (map f list);
    concatStringsSep = builtins.concatStringsSep;
    escapeShellArg = text: "'${text}'";
  };
  outside = import ../outside.nix {
    nixpkgs = null;
    pkgs = pkgs // { lib = system; htop = "htop"; curl = "curl"; sqlite = "sqlite"; gnupg = "gnupg"; };
    declaration = import ../examples/demo.nix // { inherit evalConfig; };
  };
  example = fromJSON outside.text;

  microvm = more': import ../runners/xen.nix {
    pkgs.lib = system // more;
    linuxTarget = "bzImage";
    microvmConfig = {
      hostName = "work"; preStart = "true"; user = null; vcpu = 2; mem = 1024; balloon = true; initialBalloonMem = 256; hotplugMem = 0;
      hotpluggedMem = 0; shares = [ ]; devices = [ ]; vsock = { cid = null; }; kernel = "/nix/store/k"; initrdPath = "/nix/store/i/initrd";
      kernelParams = [ "quiet" ]; credentialFiles = { }; storeDisk = "/nix/store/s"; storeOnDisk = true;
      volumes = [ { image = "var.img"; } ];
      interfaces = [ { type = "bridge"; mac = "00:16:3e:00:00:01"; bridge = "xenbr0"; id = "x"; } ];
    } // more';
  };

  fails = value: !(tryEval (deepSeq value true)).success;
  has = part: text: match "(.|\n)*${replaceStrings [ "." "*" "+" "(" ")" "[" "]" "$" "{" "}" ] [ "[.]" "[*]" "[+]" "[(]" "[)]" "[[]" "[]]" "[$]" "[{]" "[}]" ] part}(.|\n)*" text != null;
in
[
  # --- dom0
  (test "dom0's module yields what plain Nix does" (fromJSON ofFull.nexus.spec.text) (fromJSON (readFile ./full.json)))
  (test "dom0 is a Xen host" ofFull.virtualisation.xen.enable true)
  (test "dom0 applies its declaration" ofFull.systemd.services.nexus-apply.serviceConfig.ExecStart
    "${package.outPath}/bin/nxl apply --lock-timeout=300 ${ofFull.nexus.spec.outPath}")
  (test "what attaches the stores of qubes is where it is looked for" ofFull.environment.etc."xen/scripts/block-nix".source "${package.outPath}/bin/block-nix")
  (test "what an apply has started outlives it" ofFull.systemd.services.nexus-apply.serviceConfig.KillMode "process")
  (test "nexusd finds what starts qubes, and takes settings" [
    (map (package: package.outPath) ofFull.systemd.services.nexusd.path)
    (fromJSON (dom0 { inherit package; nexusd.calls = 9; }).environment.etc."nexus/nexusd.json".source.text)
  ] [ [ package.outPath ] { user = "nexus"; calls = 9; } ])
  (test "the package is built unless another is given" [ (dom0 { }).nexus.package.outPath (has "--add-rpath ${pkgs.xen.outPath}/lib" (dom0 { }).nexus.package.postFixup) ] [ package.outPath true ])
  (test "a dom0 that is no NixOS has the same unit" (filter (line: !elem line applyUnit) (
    [
      "Description=${ofFull.systemd.services.nexus-apply.description}"
      "Type=${apply.Type}"
      "KillMode=${apply.KillMode}"
      "RemainAfterExit=${if apply.RemainAfterExit then "yes" else "no"}"
      "ExecStart=${replaceStrings [ "${package.outPath}/bin" ofFull.nexus.spec.outPath ] [ "/usr/sbin" "/etc/nexus/qubes.json" ] apply.ExecStart}"
    ]
    ++ map (target: "WantedBy=${target}") ofFull.systemd.services.nexus-apply.wantedBy
  )) [ ])
  (test "which comes after the same" (filter (unit: !has " ${unit} " (replaceStrings [ "After=" "\n" ] [ " " " " ] (readFile unitFile)))
    ofFull.systemd.services.nexus-apply.after) [ ])
  (test "a new declaration is applied" ofFull.systemd.services.nexus-apply.restartTriggers [ ofFull.nexus.spec ])
  (test "dom0 calls by an agent that is not root" [
    ofFull.systemd.services.nexus-agent-dom0.serviceConfig.User
    (fromJSON ofFull.environment.etc."nexus/nexusd.json".source.text)
    (fromJSON ofFull.environment.etc."nexus/dom0.json".source.text).qube
  ] [ "nexus" { user = "nexus"; } "dom0" ])
  (test "without a package there is none" ((dom0 { package = null; qubes.work = { system = toplevel; }; }).systemd.services ? nexusd) false)
  (test "without enable nothing is done" ((dom0 { enable = false; }).virtualisation ? xen) false)
  (test "a qube's system is built from its config" (fromJSON ofDemo.nexus.spec.text).qubes.work.system "${toplevel}-work")
  (test "types are checked" (map fails [
    (dom0 { qubes.work.memory = "512"; }).nexus.qubes.work.memory
    (dom0 { qubes.work.class = "debian"; }).nexus.qubes.work.class
    (dom0 { qubes.work.system = "/etc"; }).nexus.qubes.work.system
    (dom0 { policy.rules = [ { service = "q.A"; } ]; }).nexus.policy.rules
    (dom0 { qubes.work = { system = toplevel; netvm = "gone"; }; }).nexus.spec.text
  ]) [ true true true true true ])
  (test "defaults are those of the declaration" (dom0 { qubes.work = { }; }).nexus.qubes.work.memory 512)

  # --- dom0's own containers
  (test "dom0 has none by itself" [ (attrNames ofFull.containers) (ofDemo.containers or { }) (ofDemo.systemd.slices or { }) (ofDemo.systemd.sockets ? nexus-container) ]
    [ [ "backup" "update" ] { } { } false ])
  (test "its agent reads what was made for it" [ (fromJSON ofDom0.environment.etc."nexus/dom0.json".source.text) ]
    [ (fromJSON ofDom0.nexus.spec.text).dom0.agent ])
  (test "what is called between dom0 and them, its agent decides" (map (file: ofDom0.environment.etc."nexus/dom0-policy.d/${file}".text) [ "50-nexus.policy" "90-nexus.policy" ]) [
    "nexus.Note * dom0:update dom0 allow\n"
    ''
      qubes.VMExec * @adminvm dom0:* allow
      nexus.ExecAs * @adminvm dom0:* allow
      nexus.Logs * @adminvm dom0:* allow
      nexus.Container * @adminvm @adminvm allow
    ''
  ])
  (test "and what leaves dom0, nexusd" (fromJSON ofDom0.nexus.spec.text).policy."50-nexus.policy"
    "nexus.Query * dom0:update work:db allow\n")
  (test "one has its own folder, where no other user of dom0's comes" [
    (map (part: has part updateScript) [
      "'--bind-ro=/run/nexus-containers/update:/run/nexus'" "'--bind=/run/nexus-containers/update/services:/run/nexus/services:rootidmap'"
      "until [ -S /run/nexus-containers/update/call.sock ]" "'--private-users=pick'" "'--read-only'"
    ])
    (map (rule: elem rule ofDom0.systemd.tmpfiles.rules) [
      "d /run/nexus-containers 0700 nexus root -" "d /run/nexus-containers/update 0755 nexus 395 -"
      "d /var/lib/nexus/containers/update/var/cache/update 0700 root root -"
    ])
  ] [ [ true true true true true ] [ true true true ] ])
  (test "it has what it declares, and what dom0 wants of it" [
    ofDom0.containers.update.config.environment.systemPackages
    (ofDom0.containers.update.config.systemd.sockets ? nexus-service-qubes-VMExec)
    ofDom0.environment.etc."nexus/containers/update/rpc-config/nexus.Put".text
    ofDom0.environment.etc."nexus/dom0-rpc/nexus.Container".source
    ofDom0.systemd.services."nexus-container@".serviceConfig.ExecStart
  ] [
    [ "curl" package ] true "skip-service-descriptor=true\n" "/run/nexus-container.sock"
    "${package.outPath}/bin/nexus-service --config /etc/nexus/dom0.json answer nexus.Container"
  ])
  (test "its unit wants dom0's agent, which may write that folder and no other" [
    ofDom0.systemd.services."container@update".requires
    ofDom0.systemd.services."container@update".serviceConfig.Slice
    ofDom0.systemd.services.nexus-agent-dom0.serviceConfig.ReadWritePaths
    (ofFull.systemd.services.nexus-agent-dom0.serviceConfig ? ReadWritePaths)
    (ofDemo.systemd.services.nexus-agent-dom0.serviceConfig ? ReadWritePaths)
  ] [ [ "nexus-agent-dom0.service" ] "nexus-containers.slice" "/run/nexus-containers" true false ])
  (test "without the package it is said that there is nobody to call them"
    (map (one: one.assertion) (dom0 { package = null; dom0.containers.a = { }; }).assertions) [ false ])

  # --- a qube
  (test "a qube says nothing to nobody unless asked" [ (work.services.openssh.enable) work.systemd.services."serial-getty@hvc0".enable ] [ true false ])
  (test "gntalloc has room for a thousand channels" work.boot.extraModprobeConfig "options xen-gntalloc limit=65536\n")
  (test "kernel parameters are joined" work.boot.kernelParams [ "console=hvc0" "panic=-1" "quiet" ])
  (test "its root is fleeting" [ work.fileSystems."/".fsType work.fileSystems."/nix/store".fsType work.fileSystems."/var/lib".device ] [ "tmpfs" "erofs" "/dev/xvdb" ])
  (test "its agent reads what was made for it" (fromJSON work.environment.etc."nexus/agent.json".source.text)
    (fromJSON ofDemo.nexus.spec.text).qubes.work.agent)
  (test "it says that it is up when it is"
    [ work.systemd.services.nexus-ready.after work.systemd.services.nexus-ready.serviceConfig.ExecStart ]
    [ [ "multi-user.target" "nexus-agent.service" ] "${work.nexus.qube.agent}/bin/nexus-agent --ready" ])
  (test "it says what memory it uses, as its user" [ work.systemd.services.nexus-memory.serviceConfig.ExecStart work.systemd.services.nexus-memory.serviceConfig.User ]
    [ "${work.nexus.qube.agent}/bin/nexus-agent --memory" "user" ])
  (test "its agent runs as its user" [ work.systemd.services.nexus-agent.serviceConfig.User (work.users.users.user.uid) ] [ "user" 1000 ])
  (test "its own policy" work.environment.etc."nexus/policy.d/50-nexus.policy".text "nexus.Query * work:web work:db allow\n")
  (test "its services" [
    work.environment.etc."nexus-rpc/nexus.Open".source
    work.environment.etc."nexus/rpc-config/nexus.Open".text
    work.environment.etc."nexus/containers/db/rpc-config/nexus.Query".text
  ] [ "/run/open" "skip-service-descriptor=true\n" "skip-service-descriptor=true\n" ])

  (test "dom0's commands run as the agent's user, and containers are root's" [
    work.environment.etc."nexus-rpc/qubes.VMExec".source
    work.environment.etc."nexus-rpc/nexus.Container".source
    work.environment.etc."nexus/rpc-config/nexus.Container".text
    work.systemd.sockets.nexus-container.socketConfig.SocketMode
    work.systemd.services."nexus-container@".serviceConfig.ExecStart
  ] [
    "${package.outPath}/bin/nexus-service" "/run/nexus-container.sock" "service-messages=true\n" "0600"
    "${package.outPath}/bin/nexus-service answer nexus.Container"
  ])

  (test "its services run as its user alone, if nothing else is declared" (work.systemd.sockets ? nexus-as-user) false)

  # --- containers
  (test "containers are NixOS'" (attrNames work.containers) [ "db" "web" ])
  (test "a package is in one container alone, and who may call has what calls" [
    work.containers.web.config.environment.systemPackages
    work.containers.db.config.environment.systemPackages
  ] [ [ "curl" package ] [ ] ])
  (test "a program is started by its socket" [
    work.containers.db.config.systemd.sockets.nexus-service-nexus-Query.socketConfig.ListenStream
    work.containers.db.config.systemd.services."nexus-service-nexus-Query@".serviceConfig.ExecStart
  ] [ "/run/nexus/services/nexus.Query" "/bin/query" ])
  (test "dom0's commands run inside a container, by its own systemd" [
    work.containers.web.config.systemd.sockets.nexus-service-qubes-VMExec.socketConfig.ListenStream
    work.containers.web.config.systemd.services."nexus-service-qubes-VMExec@".serviceConfig
    work.environment.etc."nexus/containers/web/rpc-config/qubes.VMExec".text
  ] [
    "/run/nexus/services/qubes.VMExec"
    {
      ExecStart = "${package.outPath}/bin/nexus-service answer qubes.VMExec";
      StandardInput = "socket"; StandardOutput = "journal"; StandardError = "journal";
    }
    "service-messages=true\n"
  ])
  (test "nobody logs into a container" work.containers.db.config.services.openssh.enable false)
  (test "a container's resources" work.systemd.services."container@db".serviceConfig { Slice = "nexus-containers.slice"; MemoryMax = "64M"; })
  (test "a container sees the paths of its closure, one by one" (map (part: has part script) [
    "while read -r path; do"
    "--bind-ro=$path"
    "done < /nix/store/0123456789abcdfghijklmnpqrsvwxyz-closure-info/store-paths"
    "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-systemd/bin/systemd-nspawn"
  ]) [ true true true true ])
  (test "and not the store" (has "--bind-ro=/nix/store:" script || has "--bind-ro=/nix/store'" script) false)
  (test "it has its own socket and no other's" (map head (filter (one: !isString one) (split "--bind=([^']*)" script))) [
    "/run/nexus/containers/db/services:/run/nexus/services:rootidmap"
    "/var/lib/nexus/containers/db/var/lib/db:/var/lib/db:rootidmap"
  ])
  (test "the folder of its socket is its own to look at and not to change"
    (has "'--bind-ro=/run/nexus/containers/db:/run/nexus'" script) true)
  (test "its root is read-only, its users its own" (map (part: has part script) [ "'--read-only'" "'--private-users=pick'" "'--no-new-privileges=yes'" ]) [ true true true ])
  (test "its network is its own where that is declared" (map (name: has "'--private-network'" work.systemd.services."container@${name}".script) [ "web" "db" ]) [ true false ])
  (test "it has the capabilities that it names" (map (part: has part work.systemd.services."container@web".script) [ "'--capability=CAP_NET_BIND_SERVICE'" "CAP_NET_BIND_SERVICE,CAP_NET_BROADCAST" "CAP_NET_ADMIN,CAP_NET_BROADCAST" ]) [ true false true ])
  (test "and not those that it does not name" (map (capability: elem capability (containers.dropped { capabilities = [ ]; })) [ "CAP_NET_ADMIN" "CAP_NET_RAW" "CAP_SYS_PTRACE" "CAP_MKNOD" "CAP_SETUID" ]) [ true true true true false ])
  (test "the agent's user owns the folder of its socket" (map (rule: elem rule work.systemd.tmpfiles.rules) [
    "d /run/nexus 0755 user root -"
    "d /run/nexus/containers/db 0755 user 1000 -"
    "d /run/nexus/containers/db/services 0755 user 1000 -"
    "d /run/nexus-roots/db/nix/store 0755 root root -"
  ]) [ true true true true ])
  (test "what it keeps has a place" (elem "d /var/lib/nexus/containers/db/var/lib/db 0700 root root -" work.systemd.tmpfiles.rules) true)

  # --- outside of NixOS
  (test "the example is a document" (lib.documentProblems example) [ ])
  (test "the example has two qubes and three containers" (builtins.mapAttrs (_: qube: attrNames qube.containers) example.qubes) {
    shop = [ "front" "orders" ];
    vault = [ "gpg" ];
  })
  (test "the example's policy" example.policy."50-nexus.policy" "* * @tag:business vault deny\nnexus.Sign * shop:front vault:gpg ask\n")

  # --- microvm.nix
  (test "a microvm is created in the foreground" (microvm { }).command (builtins.concatStringsSep " " [
    "nxl create -q -F /dev/null"
    "\"name=\\\"work\\\"\" \"type=\\\"pvh\\\"\" \"kernel=\\\"/nix/store/k/bzImage\\\"\" \"ramdisk=\\\"/nix/store/i/initrd\\\"\""
    "\"cmdline=\\\"console=hvc0 panic=-1 quiet\\\"\" \"vcpus=2\" \"memory=768\" \"maxmem=1024\""
    "\"disk=[ '/nix/store/s,raw,xvda,r', '$PWD/var.img,raw,xvdb,w' ]\""
    "\"vif=[ 'mac=00:16:3e:00:00:01,bridge=xenbr0' ]\""
  ]))
  (test "what a Xen guest has not is refused" (map (more: fails (microvm more).command) [
    { user = "me"; } { shares = [ 1 ]; } { vsock.cid = 3; } { hotplugMem = 1; } { credentialFiles = { a = 1; }; } { devices = [ 1 ]; }
    { interfaces = [ { type = "tap"; mac = "x"; id = "y"; } ]; }
  ]) [ true true true true true true true ])
]
