# dom0 on NixOS: what is declared of its qubes, and what brings it to life. It builds on nixpkgs' virtualisation.xen.
{ config, lib, pkgs, ... }:

let
  nexus = import ../lib;
  shapes = import ../lib/declaration.nix;
  make = import ./options.nix { inherit lib; };
  cfg = config.nexus;

  # A qube as it is declared, without what is the module system's.
  plainContainer = container: removeAttrs container [ "config" ];
  plainQube = qube: removeAttrs qube [ "config" ] // {
    containers = lib.mapAttrs (_: plainContainer) qube.containers;
  };

  # For the systems, which do not depend on what they are called in the store.
  withSystems = system: {
    inherit (cfg) host policy;
    qubes = lib.mapAttrs (name: qube: plainQube qube // { system = system name qube; }) cfg.qubes;
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
  containerFields = shapes.container.fields;
  qubeType = lib.types.submodule {
    options = make.options (removeAttrs shapes.qube.fields [ "containers" ]) // {
      config = configOption "qube";
      containers = lib.mkOption {
        type = lib.types.attrsOf (lib.types.submodule { options = make.options containerFields // { config = configOption "container"; }; });
        default = { };
        inherit (shapes.qube.fields.containers) description;
      };
    };
  };
in
{
  options.nexus = {
    enable = lib.mkEnableOption "qubes that are declared";
    package = lib.mkOption {
      type = lib.types.nullOr lib.types.package;
      default = null;
      description = "The package with nxl and nexus-agent; null for those that are on the host already.";
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
    host = make.option fields.host;
    policy = make.option fields.policy;
  };

  config = lib.mkIf cfg.enable {
    virtualisation.xen.enable = true;
    environment.systemPackages = lib.optional (cfg.package != null) cfg.package;
    environment.etc."nexus/qubes.json".source = cfg.spec;

    systemd.services.nexus-apply = {
      description = "Make this host what is declared of its qubes";
      wantedBy = [ "multi-user.target" ];
      after = [ "xenconsoled.service" "xenstored.service" "xen-init-dom0.service" "network.target" ];
      requires = [ "xenstored.service" ];
      # A new declaration is applied when the system is switched to it. Nothing is removed by that.
      restartTriggers = [ cfg.spec ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${if cfg.package == null then "/usr" else cfg.package}/${if cfg.package == null then "sbin" else "bin"}/nxl apply ${cfg.spec}";
      };
    };
  };
}
