# What every container's own configuration gets: nothing that it did not ask for, and the sockets of what it offers. `nexus.services`
# is filled in by the qube's module.
{ config, lib, ... }:

let
  declaration = import ../lib/declaration.nix;
  words = import ../lib/words.nix;
  shape = import ../lib/shape.nix;
  containers = import ./containers.nix;
  declared = containers.execUnits config.nexus.services;
  own = if config.nexus.package == null then { sockets = { }; services = { }; } else containers.ownUnits config.nexus.package;
in
{
  options.nexus.services =
    (import ./options.nix { inherit lib; }).option
      (shape.optional { } (shape.attrsOf words.service declaration.service) "What this container offers.");

  options.nexus.package = lib.mkOption {
    type = lib.types.nullOr lib.types.package;
    default = null;
    description = "The package with bin/nexus-service, by which dom0 runs commands in this container; null leaves that out.";
  };

  config = {
    boot.isContainer = true;
    systemd.sockets = own.sockets // declared.sockets;
    systemd.services = own.services // declared.services;

    # The store is that of its closure: there is nothing to build with.
    nix.enable = lib.mkDefault false;
    networking.useDHCP = lib.mkDefault false;
    # Nobody logs in; what runs in it is declared.
    services.openssh.enable = lib.mkDefault false;
    services.getty.autologinUser = lib.mkDefault null;
    documentation.enable = lib.mkDefault false;
  };
}
