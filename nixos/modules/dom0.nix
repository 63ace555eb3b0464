# dom0 on NixOS: what is declared of it and of its qubes, and what brings that to life. It builds on nixpkgs' virtualisation.xen.
{ config, lib, pkgs, ... }:

let
  nexus = import ../lib;
  shapes = import ../lib/declaration.nix;
  make = import ./options.nix { inherit lib; };
  cfg = config.nexus;

  # A qube, or dom0, as it is declared, without what is the module system's.
  plain = owner: removeAttrs owner [ "config" ] // {
    containers = lib.mapAttrs (_: container: removeAttrs container [ "config" ]) owner.containers;
  };

  # For the systems, which do not depend on what they are called in the store.
  withSystems = system: {
    inherit (cfg) host network remotes policy;
    dom0 = plain cfg.dom0;
    qubes = lib.mapAttrs
      (name: qube: plain qube // { system = system name qube; }
        # Without the agent nobody says that it is up: what is built here would be taken back each time.
        // (if cfg.package == null && qube.system == null then { ready = null; } else { }))
      cfg.qubes;
  };
  placeholder = "/nix/store/00000000000000000000000000000000-to-be-built";
  declaration = withSystems (_: qube: if qube.class != "nixos" then null else if qube.system != null then qube.system else placeholder);

  # The NixOS of a qube, where one is declared by its configuration.
  systemOf = name: qube:
    if qube.system != null || qube.class != "nixos" then qube.system
    else
      (cfg.evalConfig {
        inherit (pkgs.stdenv.hostPlatform) system;
        modules = [
          ./qube.nix
          { nexus.qube = { inherit name declaration; agent = cfg.package; containers = lib.mapAttrs (_: container: container.config) qube.containers; }; }
          qube.config
        ];
      }).config.system.build.toplevel;

  spec = pkgs.writeText "qubes.json" (nexus.json (withSystems systemOf));

  configOption = what: lib.mkOption {
    type = lib.types.deferredModule;
    default = { };
    description = "The NixOS configuration of the ${what}.";
  };

  fields = shapes.nexus.fields;
  # The options of who has containers.
  withContainers = fields: make.options (removeAttrs fields [ "containers" ]) // {
    containers = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule { options = make.options shapes.container.fields // { config = configOption "container"; }; });
      default = { };
      inherit (fields.containers) description;
    };
  };
  qubeType = lib.types.submodule { options = withContainers shapes.qube.fields // { config = configOption "qube"; }; };

  # What is made for dom0 itself.
  made = nexus.ofDom0 declaration;
  hasContainers = cfg.dom0.containers != { };
  runFolder = (import ../lib/document.nix).folders.dom0;
  nspawn = import ./nspawn.nix {
    inherit config lib pkgs;
    agent = cfg.package;
    user = "nexus";
    owner = (import ./containers.nix).ofDom0;
  };
in
{
  options.nexus = {
    enable = lib.mkEnableOption "qubes that are declared";
    package = lib.mkOption {
      type = lib.types.nullOr lib.types.package;
      default = import ../package.nix { inherit pkgs; };
      defaultText = lib.literalExpression "import ../package.nix { inherit pkgs; }";
      description = "The package with nxl, nexusd and nexus-agent; null for those that are on the host already, and qubes without an agent.";
    };
    nexusd = lib.mkOption {
      type = lib.types.attrsOf lib.types.raw;
      default = { };
      example = { ask = [ "nexus-ask" "--terminal" "/dev/tty8" ]; calls = 2000; };
      description = "Settings of nexusd beyond those that the declaration gives it: the keys of nexusd.json. Without `ask`, what policy says is to be asked is denied.";
    };
    evalConfig = lib.mkOption {
      type = lib.types.raw;
      default = import "${pkgs.path}/nixos/lib/eval-config.nix";
      defaultText = lib.literalExpression "import <nixpkgs/nixos/lib/eval-config.nix>";
      description = "What evaluates the NixOS of a qube: another nixpkgs than dom0's has another one.";
    };
    spec = lib.mkOption {
      type = lib.types.package;
      readOnly = true;
      default = spec;
      description = "qubes.json: what `nxl apply` makes the host.";
    };
    qubes = lib.mkOption {
      type = lib.types.attrsOf qubeType;
      default = { };
      inherit (fields.qubes) description;
    };
    dom0 = lib.mkOption {
      type = lib.types.submodule { options = withContainers shapes.dom0.fields; };
      default = { };
      inherit (fields.dom0) description;
    };
    host = make.option fields.host;
    network = make.option fields.network;
    policy = make.option fields.policy;
    remotes = make.option fields.remotes;
  };

  config = lib.mkIf cfg.enable (lib.mkMerge [ {
    virtualisation.xen.enable = true;
    environment.systemPackages = lib.optional (cfg.package != null) cfg.package;
    environment.etc."nexus/qubes.json".source = cfg.spec;

    systemd.services.nexus-apply = {
      description = "Make this host what is declared of its qubes";
      wantedBy = [ "multi-user.target" ];
      after = [ "xenconsoled.service" "xenstored.service" "xen-init-dom0.service" "network.target" "nexusd.service" ];
      requires = [ "xenstored.service" ];
      # A new declaration is applied when the system is switched to it. Nothing is removed by that.
      restartTriggers = [ cfg.spec ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        # A call that came early may have a qube started meanwhile.
        ExecStart = "${if cfg.package == null then "/usr" else cfg.package}/${if cfg.package == null then "sbin" else "bin"}/nxl apply --lock-timeout=300 ${cfg.spec}";
        # Qubes go on when this stops, or could not do all of it, and so does nxl's watcher.
        KillMode = "process";
      };
    };
  } (lib.mkIf (cfg.package != null) {
    # What attaches the store of a qube, where libxl and nxl look for the scripts of disks.
    environment.etc."xen/scripts/block-nix".source = "${cfg.package}/bin/block-nix";

    # --- calls: nexusd decides, and dom0's own agent calls for `nxl exec' and its like. Neither is root once it runs.
    users.users.nexus = { isSystemUser = true; group = "nexus"; };
    users.groups.nexus = { };
    services.udev.extraRules = ''
      SUBSYSTEM=="misc", KERNEL=="xen/evtchn|xen/gntalloc|xen/gntdev|xen/xenbus", GROUP="nexus", MODE="0660"
    '';
    environment.etc."nexus/nexusd.json".source = pkgs.writeText "nexusd.json" (builtins.toJSON ({
      user = "nexus";
    } // cfg.nexusd));
    environment.etc."nexus/dom0.json".source = pkgs.writeText "dom0.json" (builtins.toJSON made.agent);
    systemd.sockets.nexusd = {
      wantedBy = [ "sockets.target" ];
      socketConfig = {
        ListenStream = [ "/run/nexus/control.sock" "/run/nexus/metrics.sock" ];
        SocketGroup = "nexus";
        SocketMode = "0660";
      };
    };
    systemd.services.nexusd = {
      description = "Decides calls between qubes";
      wantedBy = [ "multi-user.target" ];
      requires = [ "nexusd.socket" "xenstored.service" ];
      after = [ "nexusd.socket" "xenstored.service" ];
      # It starts qubes that are called, by `nxl`.
      path = [ cfg.package ];
      serviceConfig = {
        ExecStart = "${cfg.package}/bin/nexusd";
        Type = "notify";
        Restart = "on-failure";
        # What it has started for a qube does not end with it.
        KillMode = "process";
        RuntimeDirectory = "nexus";
        RuntimeDirectoryPreserve = true;
        StateDirectory = "nexus";
        LogsDirectory = "nexus";
        NoNewPrivileges = true;
      };
    };
    systemd.services.nexus-agent-dom0 = {
      description = "Calls of dom0";
      wantedBy = [ "multi-user.target" ];
      wants = [ "nexusd.service" ];
      after = [ "nexusd.service" ];
      # xenstored's socket is root's. The kernel's device is as good.
      environment.XENSTORED_PATH = "/dev/xen/xenbus";
      serviceConfig = {
        ExecStart = "${cfg.package}/bin/nexus-agent --config /etc/nexus/dom0.json";
        Type = "notify";
        Restart = "always";
        User = "nexus";
        RuntimeDirectory = "nexus";
        RuntimeDirectoryPreserve = true;
        LimitNOFILE = 65536;
        NoNewPrivileges = true;
        CapabilityBoundingSet = "";
        ProtectSystem = "strict";
        ProtectHome = true;
        PrivateTmp = true;
        RestrictAddressFamilies = "AF_UNIX";
      } // (if hasContainers then { ReadWritePaths = runFolder; } else { });
    };
  })

  # --- dom0's own containers, which there are none of unless they are declared: calls between them and dom0 are its agent's to decide
  (lib.mkIf hasContainers (nspawn.run {
    declared = (nexus.complete declaration).dom0.containers;
    configs = lib.mapAttrs (_: container: container.config) cfg.dom0.containers;
  }))
  (lib.mkIf (hasContainers && cfg.package != null) (nspawn.control {
    services = "nexus/dom0-rpc";
    rpcConfig = "nexus/dom0-rpc-config";
    settings = "/etc/nexus/dom0.json";
  }))
  (lib.mkIf hasContainers {
    assertions = [ {
      assertion = cfg.package != null;
      message = "nexus.dom0.containers: a container is called, and calls, by dom0's agent, which nexus.package has";
    } ];
    # What is mounted into a container as its agent's is numbered as the agent's user is, as whom and as which group alike.
    users.users.nexus.uid = lib.mkDefault 395;
    users.groups.nexus.gid = lib.mkDefault config.users.users.nexus.uid;
    # Who could connect to a container's socket would be that container: no other user of dom0's comes as far.
    systemd.tmpfiles.rules = [ "d ${runFolder} 0700 nexus root -" ];
    environment.etc = lib.mkMerge [
      (nspawn.settings made.containers)
      (lib.mapAttrs' (name: text: lib.nameValuePair "nexus/dom0-policy.d/${name}" { inherit text; }) made.policy)
    ];
  })

  ]);
}
