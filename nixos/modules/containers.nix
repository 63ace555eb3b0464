# What a container is on NixOS, from what is declared of it: pure functions, whose results the modules put into `containers` and
# `systemd` of the qube or dom0 (./nspawn.nix), and into the container's own configuration. Here is what keeps it apart from everybody
# else.
let
  inherit (builtins) attrNames concatMap concatStringsSep elem filter listToAttrs map;
  inherit (import ../lib/policy.nix) inContainers;

  inherit (import ../lib/document.nix) folders;

  # Whose containers they are: where the agent has the socket that each calls on, and the folder of its services (that and nothing else, as
  # the container sees all of it); and the agent's unit.
  ofQube = { folder = name: "${folders.qube}/${name}"; agent = "nexus-agent.service"; };
  ofDom0 = { folder = name: "${folders.dom0}/${name}"; agent = "nexus-agent-dom0.service"; };
  # Its root, which has mount points and nothing else. It is outside of what the agent's user owns: systemd-tmpfiles would make nothing
  # of root's there.
  root = name: "/run/nexus-roots/${name}";
  # Where what it keeps lies: on the qube's private volume, or in dom0.
  kept = name: path: "/var/lib/nexus/containers/${name}${path}";

  socketUnit = service: "nexus-service-${builtins.replaceStrings [ "." ] [ "-" ] service}";

  # What systemd-nspawn leaves a container unless it is told otherwise (systemd-nspawn(1), --capability=), and what it adds with
  # a private network.
  given = [
    "CAP_AUDIT_CONTROL" "CAP_AUDIT_WRITE" "CAP_CHOWN" "CAP_DAC_OVERRIDE" "CAP_DAC_READ_SEARCH" "CAP_FOWNER" "CAP_FSETID"
    "CAP_IPC_OWNER" "CAP_KILL" "CAP_LEASE" "CAP_LINUX_IMMUTABLE" "CAP_MKNOD" "CAP_NET_ADMIN" "CAP_NET_BIND_SERVICE"
    "CAP_NET_BROADCAST" "CAP_NET_RAW" "CAP_SETFCAP" "CAP_SETGID" "CAP_SETPCAP" "CAP_SETUID" "CAP_SYS_ADMIN" "CAP_SYS_BOOT"
    "CAP_SYS_CHROOT" "CAP_SYS_NICE" "CAP_SYS_PTRACE" "CAP_SYS_RESOURCE" "CAP_SYS_TTY_CONFIG"
  ];

  # Without these its init starts no service as a user of its own. They count within the container's user namespace alone.
  ofInit = [
    "CAP_CHOWN" "CAP_DAC_OVERRIDE" "CAP_FOWNER" "CAP_KILL" "CAP_SETGID" "CAP_SETPCAP" "CAP_SETUID" "CAP_SYS_ADMIN"
  ];

  dropped = container:
    filter (capability: !(elem capability ofInit) && !(elem capability container.capabilities)) given;

  # Folders that are the container's own to write, and gone with it. In /lib and /lib64 NixOS has something to say to programs that
  # were not built for it.
  fleeting = [ "/bin" "/etc" "/home" "/lib" "/lib64" "/root" "/srv" "/tmp" "/usr" "/var" ];

  # And the folders in which what it keeps is mounted: those that systemd-nspawn makes on the way are nobody's inside.
  above = path:
    let parts = filter (part: builtins.isString part && part != "") (builtins.split "/" path); in
    builtins.genList
      (last: concatStringsSep "" (builtins.genList (n: "/${builtins.elemAt parts n}") (last + 1)))
      (builtins.length parts - 1);
  fleetingOf = container:
    fleeting ++ attrNames (removeAttrs (listToAttrs (map (name: { inherit name; value = null; }) (concatMap above container.persist))) fleeting);

  # systemd-nspawn's arguments, without the paths of the closure.
  arguments = owner: name: container:
    [
      "--keep-unit"
      "--machine=${name}"
      "--directory=${root name}"
      "--notify-ready=yes"
      "--kill-signal=SIGRTMIN+3"
      "--link-journal=no"
      "--register=no"
      # Users of its own: root in it is nobody outside.
      "--private-users=pick"
      "--no-new-privileges=yes"
      "--drop-capability=${concatStringsSep "," (dropped container)}"
    ]
    ++ (if container.capabilities == [ ] then [ ] else [ "--capability=${concatStringsSep "," container.capabilities}" ])
    ++ (if container.privateNetwork then [ "--private-network" ] else [ ])
    ++ [ "--read-only" ]
    ++ map (path: "--tmpfs=${path}:mode=${if path == "/tmp" then "1777" else "0755"}") (fleetingOf container)
    # The folder with its own socket, and no other's: the folder and not the socket, since an agent that comes back makes a new
    # one. It cannot put another in its place. Whoever owns a folder outside (the agent's user of the services, root of what is kept) is the
    # container's root inside: so it can write there, and the agent can connect to what it finds there.
    ++ [
      "--bind-ro=${owner.folder name}:/run/nexus"
      "--bind=${owner.folder name}/services:/run/nexus/services:rootidmap"
    ]
    ++ map (path: "--bind=${kept name path}:${path}:rootidmap") container.persist;

  # What stands in place of NixOS' own start script, which shows a container the whole store.
  #   closure  a file with the store paths of the container's closure, a line each
  #   system   its toplevel
  script = owner: { nspawn, closure, system }: name: container: ''
    # The agent makes it when it is up.
    until [ -S ${owner.folder name}/call.sock ]; do sleep 0.1; done
    flags=()
    while read -r path; do
      # A mount point, as systemd-nspawn makes none in a root that is read-only.
      if [ -d "$path" ]; then mkdir -p "${root name}$path"; else : > "${root name}$path"; fi
      flags+=("--bind-ro=$path")
    done < ${closure}
    # What is in the root does not tell it that systemd in there knows no other.
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    exec ${nspawn} ${concatStringsSep " " (map (argument: "'${argument}'") (arguments owner name container))} "''${flags[@]}" ${system}/init
  '';

  # { SERVICE = command line; }, and where each one's stdout goes.
  units = output: programs:
    let of = make: listToAttrs (map make (attrNames programs)); in
    {
      sockets = of (service: {
        name = socketUnit service;
        value = {
          wantedBy = [ "sockets.target" ];
          socketConfig = { ListenStream = "/run/nexus/services/${service}"; Accept = true; RemoveOnStop = true; };
        };
      });
      services = of (service: {
        name = "${socketUnit service}@";
        value.serviceConfig = {
          ExecStart = programs.${service};
          StandardInput = "socket";
          StandardOutput = output;
          StandardError = "journal";
        };
      });
    };
in
{
  inherit ofQube ofDom0 dropped script;

  # For `containers.NAME` of NixOS: what builds its configuration.
  nixos = container: {
    autoStart = container.autostart;
    inherit (container) privateNetwork;
    privateUsers = "pick";
    additionalCapabilities = container.capabilities;
  };

  # For `systemd.services."container@NAME"`.
  unit = owner: container: {
    after = [ owner.agent ];
    requires = [ owner.agent ];
    serviceConfig =
      (if container.resources.memory == null then { } else { MemoryMax = "${toString container.resources.memory}M"; })
      // (if container.resources.cpuWeight == null then { } else { CPUWeight = container.resources.cpuWeight; })
      // (if container.resources.tasks == null then { } else { TasksMax = container.resources.tasks; });
  };

  # What must be there before it starts, for systemd-tmpfiles. The agent, which runs as `user`, makes the socket, and reads the
  # services. rootidmap maps the owner's number as that of the group, too, and nobody may write where one of the two is not mapped.
  tmpfiles = owner: { user, uid }: name: container:
    map (path: "d ${owner.folder name}${path} 0755 ${user} ${toString uid} -") [ "" "/services" ]
    ++ map (path: "d ${root name}${path} 0755 root root -")
      ([ "" "/nix" "/nix/store" "/dev" "/proc" "/run" "/sys" ] ++ fleetingOf container ++ container.persist)
    ++ map (path: "d ${kept name path} 0700 root root -") container.persist;

  # Inside: sockets that start a program for each call. { sockets, services } of systemd.
  execUnits = services:
    units "socket" (listToAttrs (map (name: { inherit name; value = services.${name}.program; })
      (filter (service: services.${service}.kind == "exec") (attrNames services))));

  # The same of what every container offers to dom0: commands and its journal. They run inside, as its root and by its own systemd;
  # the agent has a socket of each, which speaks in messages (docs/calls.md).
  ownUnits = package:
    units "journal" (listToAttrs (map (name: { inherit name; value = "${package}/bin/nexus-service answer ${name}"; }) inContainers));
}
