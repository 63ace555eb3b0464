# What a container is on NixOS, from what is declared of it: pure functions, whose results the modules put into `containers` and
# `systemd` of the qube, and into the container's own configuration. Here is what keeps it apart from everybody else.
let
  inherit (builtins) attrNames concatMap concatStringsSep elem filter listToAttrs map;

  # Where the agent has the socket that a container calls on, and the folder of its services (../lib/document.nix).
  folder = name: "/run/nexus/containers/${name}";
  # Where what it keeps lies, on the qube's private volume.
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

  # Folders that are the container's own to write, and gone with it.
  fleeting = [ "/bin" "/etc" "/home" "/root" "/srv" "/tmp" "/usr" "/var" ];

  # systemd-nspawn's arguments, without the paths of the closure.
  arguments = name: container:
    [
      "--keep-unit"
      "--machine=${name}"
      "--directory=${folder name}/root"
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
    ++ map (path: "--tmpfs=${path}:mode=${if path == "/tmp" then "1777" else "0755"}") fleeting
    # Its own socket, and no other's; the agent reads its services, and writes nothing there.
    ++ [ "--bind=${folder name}/call.sock:/run/nexus/call.sock" "--bind=${folder name}/services:/run/nexus/services" ]
    ++ map (path: "--bind=${kept name path}:${path}") container.persist;

  # What stands in place of NixOS' own start script, which shows a container the whole store.
  #   closure  a file with the store paths of the container's closure, a line each
  #   system   its toplevel
  script = { nspawn, closure, system }: name: container: ''
    flags=()
    while read -r path; do
      flags+=("--bind-ro=$path")
    done < ${closure}
    exec ${nspawn} ${concatStringsSep " " (map (argument: "'${argument}'") (arguments name container))} "''${flags[@]}" ${system}/init
  '';
in
{
  inherit folder kept socketUnit dropped arguments script;

  # For `containers.NAME` of NixOS: what builds its configuration.
  nixos = container: {
    autoStart = container.autostart;
    inherit (container) privateNetwork;
    privateUsers = "pick";
    additionalCapabilities = container.capabilities;
  };

  # For `systemd.services."container@NAME"`.
  unit = container: {
    after = [ "nexus-agent.service" ];
    requires = [ "nexus-agent.service" ];
    serviceConfig =
      { Slice = "nexus-containers.slice"; }
      // (if container.resources.memory == null then { } else { MemoryMax = "${toString container.resources.memory}M"; })
      // (if container.resources.cpuWeight == null then { } else { CPUWeight = container.resources.cpuWeight; })
      // (if container.resources.tasks == null then { } else { TasksMax = container.resources.tasks; });
  };

  # What must be there before it starts, for systemd-tmpfiles: its root has mount points and nothing else.
  folders = name: container:
    let of = path: "d ${folder name}/${path} 0755 root root -"; in
    map of ([ "" "services" "root" "root/nix" "root/nix/store" "root/dev" "root/proc" "root/run" "root/sys" ]
      ++ map (path: "root${path}") fleeting)
    ++ map (path: "d ${kept name path} 0700 root root -") container.persist;

  # Inside: sockets that start a program for each call. { sockets, services } of systemd.
  execUnits = services:
    let
      execs = filter (service: services.${service}.kind == "exec") (attrNames services);
      of = make: listToAttrs (map make execs);
    in
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
          ExecStart = services.${service}.program;
          StandardInput = "socket";
          StandardOutput = "socket";
          StandardError = "journal";
        };
      });
    };
}
