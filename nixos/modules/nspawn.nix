# What a qube and dom0 have in common as to containers: their units, folders and configurations, and dom0's part in them.
#
#   owner    whose they are: ofQube or ofDom0 of ./containers.nix
#   agent    the package with what `nxl exec`, `logs` and `container` call; null leaves that out
#   user     whom the owner's agent runs as
{ config, lib, pkgs, owner, agent, user }:

let
  containers = import ./containers.nix;
  # The services of administration that every container has.
  administration = (import ../lib/policy.nix).inContainers;
  controlSocket = "/run/nexus-container.sock";
  inMessages = "service-messages=true\n";
in
{
  # `nexus.Container`, by which dom0 starts and stops them: they are root's, whose part is behind a socket that the agent's user may connect
  # to, and does nothing but that to those that are declared.
  #   services    the folder of the owner's services, below /etc
  #   rpcConfig   that of their settings
  #   settings    the agent's, where nexus-service does not look for them by itself
  control = { services, rpcConfig, settings ? null }: {
    environment.etc."${services}/nexus.Container".source = controlSocket;
    environment.etc."${rpcConfig}/nexus.Container".text = inMessages;
    systemd.sockets.nexus-container = {
      description = "dom0's wishes for the containers of this qube";
      wantedBy = [ "sockets.target" ];
      socketConfig = { ListenStream = controlSocket; Accept = true; SocketUser = user; SocketMode = "0600"; };
    };
    systemd.services."nexus-container@" = {
      description = "One of dom0's wishes for the containers of this qube";
      unitConfig.CollectMode = "inactive-or-failed";
      serviceConfig = {
        ExecStart = "${agent}/bin/nexus-service ${if settings == null then "" else "--config ${settings} "}answer nexus.Container";
        StandardInput = "socket";
        StandardOutput = "journal";
        StandardError = "journal";
      };
    };
  };

  # The settings of each container's services, those of administration among them.
  #   made    what ../lib makes of the declaration: { CONTAINER.rpcConfig }
  settings = made: lib.mkMerge (lib.mapAttrsToList
    (name: container: lib.mapAttrs'
      (service: text: lib.nameValuePair "nexus/containers/${name}/rpc-config/${service}" { inherit text; })
      (container.rpcConfig // (if agent == null then { } else builtins.listToAttrs (map (name: { inherit name; value = inMessages; }) administration))))
    made);

  # The containers themselves.
  #   declared    as they are declared
  #   configs     their NixOS configurations, by name
  #   shared      what of the owner's configuration those have that share its network
  run = { declared, configs, shared ? { } }: {
    systemd.slices.nexus-containers.description = "The containers of this qube";
    systemd.tmpfiles.rules = [ "d /run/nexus-roots 0755 root root -" ]
      ++ lib.concatLists (lib.mapAttrsToList (containers.tmpfiles owner { inherit user; inherit (config.users.users.${user}) uid; }) declared);
    containers = lib.mapAttrs
      (name: container: containers.nixos container // {
        config = {
          imports = [ ./container.nix ] ++ lib.optional (configs ? ${name}) configs.${name}
            ++ lib.optional (!container.privateNetwork && shared != { }) shared;
          nexus.services = container.services;
          nexus.package = agent;
          # Who may call finds what calls by its name.
          environment.systemPackages = lib.optional (agent != null && container.calls != [ ]) agent;
        };
      })
      declared;
    systemd.services = lib.mapAttrs'
      (name: container:
        let system = config.containers.${name}.config.system.build.toplevel; in
        lib.nameValuePair "container@${name}" (lib.recursiveUpdate (containers.unit owner container) {
          # NixOS puts it into machine.slice.
          serviceConfig.Slice = lib.mkForce "nexus-containers.slice";
          script = lib.mkForce (containers.script owner
            {
              nspawn = "${config.systemd.package}/bin/systemd-nspawn";
              closure = "${pkgs.closureInfo { rootPaths = [ system ]; }}/store-paths";
              inherit system;
            }
            name
            container);
        }))
      declared;
  };
}
