# What is declared: the attributes below `nexus`, with their defaults. docs/declaring-qubes.md tells of
# them in prose.
let
  shape = import ./shape.nix;
  words = import ./words.nix;
  inherit (shape) int bool oneOf nullOr listOf attrsOf record required optional;

  # MiB; 16 TiB is more than Xen supports.
  mebibytes = least: int least 16777216;
in
rec {
  service = record {
    kind = optional "exec" (oneOf [ "exec" "socket" ])
      "exec: a program is started for each call. socket: something that runs listens.";
    program = optional null (nullOr words.path) "The program, for exec: its stdin and stdout are the caller's.";
    socket = optional null (nullOr words.path)
      "Where it listens, for socket. In a container, null is the place that the agent looks at: /run/nexus/services/SERVICE.";
    descriptor = optional false bool
      "Whether a socket gets `SERVICE+ARGUMENT SOURCE` and a NUL before the caller's bytes. An HTTP server wants it not.";
    exitOnServiceEof = optional false bool "The call ends when the service has no more to say.";
    exitOnClientEof = optional false bool "The call ends when the caller has no more to say.";
  };

  call = record {
    service = required words.service "Which service.";
    argument = optional null (nullOr words.argument) "With which argument: null for any, \"\" for none.";
    target = required words.callee "Whose: QUBE, QUBE:CONTAINER, :CONTAINER of the same qube, @dispvm, @dispvm:QUBE or dom0.";
    ask = optional false bool "Ask the user of the machine each time.";
  };

  rule = record {
    service = required words.serviceOrAny "A service, or *.";
    argument = optional null (nullOr words.argument) "Its argument: null for any, \"\" for none.";
    source = required words.source "Who calls.";
    target = required words.source "Whom.";
    action = required (oneOf [ "allow" "deny" "ask" ]) "What becomes of it.";
    redirect = optional null (nullOr words.callee) "`target=`: where the call goes instead.";
    proposed = optional null (nullOr words.callee) "`default_target=`: what the user is offered first.";
    user = optional null (nullOr words.user) "`user=`: whom the service runs as.";
    notify = optional null (nullOr bool) "`notify=`: whether the user of the machine is told.";
    autostart = optional null (nullOr bool) "`autostart=`: whether a target that does not run is started.";
  };

  disk = record {
    target = required words.target "The image or the block device, in dom0.";
    vdev = required words.vdev "What the qube sees it as.";
    access = optional "r" (oneOf [ "r" "w" ]) "r or w: whether the qube may write it.";
  };

  container = record {
    system = optional null (nullOr words.storePath)
      "What runs in it: the toplevel of its system. Null where a NixOS module builds it from `config`.";
    services = optional { } (attrsOf words.service service) "What it offers.";
    calls = optional [ ] (listOf call) "What it may call.";
    privateNetwork = optional true bool "No interface but its own lo: nothing of the qube's network.";
    resources = optional { memory = null; cpuWeight = null; tasks = null; }
      (record {
        memory = optional null (nullOr (mebibytes 1)) "The most memory, in MiB (MemoryMax).";
        cpuWeight = optional null (nullOr (int 1 10000)) "Its share of the processors (CPUWeight; 100 is everybody's).";
        tasks = optional null (nullOr (int 1 4194304)) "The most processes and threads (TasksMax).";
      }) "What it may use.";
    persist = optional [ ] (listOf words.path) "Folders that are kept, on the qube's private volume. All else is gone when it stops.";
    capabilities = optional [ ] (listOf words.capability) "Capabilities that it has. It has no others.";
    autostart = optional true bool "Whether it starts with its qube.";
  };

  qube = record {
    class = optional "nixos" (oneOf [ "nixos" "whonix" ]) "What it is. Nothing but NixOS is run, with Whonix as the one exception.";
    system = optional null (nullOr words.storePath)
      "The toplevel of its NixOS. Null for Whonix, and where a NixOS module builds it from `config`.";
    boot = optional null
      (nullOr (record {
        kernel = required words.path "Its kernel, in dom0.";
        initrd = optional null (nullOr words.path) "Its initrd, in dom0.";
        cmdline = optional "" words.line "The kernel's command line.";
      })) "What a qube that is not NixOS boots.";
    type = optional "pvh" (oneOf [ "pvh" "pv" ]) "The kind of guest: pv is for machines without hardware virtualisation.";
    memory = optional 512 (mebibytes 32) "Memory at the start, in MiB.";
    maxmem = optional null (nullOr (mebibytes 32)) "Memory to which it may grow, in MiB; null for no more than `memory`.";
    vcpus = optional 1 (int 1 128) "vCPUs at the start.";
    maxvcpus = optional null (nullOr (int 1 128)) "vCPUs that it may be given; null for no more than `vcpus`.";
    autostart = optional true bool "Whether `nxl apply` starts it. One that does not start by itself is changed while it runs.";
    netvm = optional null (nullOr words.name) "The qube that its network interface leads to; null for none.";
    ip = optional null (nullOr words.ipv4) "Its address in its netvm's network; null for one of `network.prefix` that comes from its name.";
    bridges = optional [ ] (listOf words.bridge) "Bridges of dom0 that it has an interface on.";
    disks = optional [ ] (listOf disk) "Its disks.";
    store = optional "xvda" (nullOr words.vdev)
      "What the qube sees the image of its system's closure as, its /nix/store; null for a system that has it otherwise.";
    private = optional null
      (nullOr (record {
        size = required (mebibytes 16) "Its size, in MiB.";
        target = optional null (nullOr words.volume) "The volume: FOLDER/NAME.raw, or a block device of dom0; null for /var/lib/nxl/volumes/QUBE.raw, the volume of the qube's name of `nxl volume`.";
        vdev = optional "xvdb" words.vdev "What the qube sees it as.";
        format = optional null (nullOr words.fileSystem)
          "The file system that dom0 makes when the volume is new; null where the qube makes it at its first start, as ours do.";
      })) "The volume for what the qube keeps.";
    ready = optional { timeout = 300; }
      (nullOr (record {
        timeout = optional 300 (int 1 86400) "Seconds that a new generation may take to say that it is up. One that takes longer is ended, and the one before is booted.";
      })) "Whether the qube says that it is up, as its agent does; null for one that never does, which is never taken back by itself.";
    pci = optional [ ] (listOf words.pci) "The host's PCI devices that it gets: of type pv alone.";
    tags = optional [ ] (listOf words.tag) "Tags, for the policy.";
    disposableTemplate = optional false bool "Whether disposable qubes are made from it.";
    defaultDisposable = optional null (nullOr words.name) "What @dispvm is made from when it calls.";
    user = optional "user" words.user "Whom its agent, and so its services, run as.";
    users = optional [ ] (listOf words.userOrAny)
      "Whom its services may run as besides, where a rule has `user=` or their settings `force-user=`; \"*\" for everybody. What may be run so, any program of `user` may run so.";
    openCalls = optional 256 (int 1 65536) "How many calls the qube, and each of its containers, may have open.";
    services = optional { } (attrsOf words.service service) "What the qube itself offers.";
    calls = optional [ ] (listOf call) "What the qube itself may call.";
    policy = optional [ ] (listOf rule) "Rules about this qube, which stand before those that come from `calls`.";
    containers = optional { } (attrsOf words.name container) "Its containers.";
  };

  dom0 = record {
    openCalls = optional 256 (int 1 65536) "How many calls dom0 itself, and each of its containers, may have open.";
    policy = optional [ ] (listOf rule) "Rules about dom0's containers, which stand before those that come from `calls`.";
    containers = optional { } (attrsOf words.name container)
      "Containers in dom0 itself. They have dom0's kernel: what breaks out of one is in dom0.";
  };

  remote = record {
    relay = required words.name "The qube of this host that carries its calls, both ways.";
    service = required words.service "The relay's service that takes on calls to it (qrexec's transport_rpc).";
    tags = optional [ ] (listOf words.tag) "Tags, for the policy.";
  };

  nexus = record {
    host = optional { memory = null; }
      (record {
        memory = optional null (nullOr (mebibytes 1)) "Memory that there is for qubes, in MiB; null where that is not known.";
      }) "The machine.";
    network = optional { prefix = "10.137.0.0/16"; disposables = "10.138.0.0/16"; dns = [ ]; }
      (record {
        prefix = optional "10.137.0.0/16" words.prefix "The addresses of qubes that have a netvm.";
        disposables = optional "10.138.0.0/16" words.prefix "Those of disposable qubes, each of which gets one that is free.";
        dns = optional [ ] (listOf words.ipv4) "The name servers of qubes that have a netvm, and of their containers that share its network.";
      }) "Addresses of qubes behind netvms.";
    dom0 = optional { openCalls = 256; policy = [ ]; containers = { }; } dom0 "dom0 itself.";
    qubes = optional { } (attrsOf words.name qube) "The qubes, by name.";
    remotes = optional { } (attrsOf words.name remote)
      "Qubes of other hosts (RemoteVMs), by the names that they have here: who calls here and whom calls go to by a relay.";
    policy = optional { rules = [ ]; text = ""; files = { }; }
      (record {
        rules = optional [ ] (listOf rule) "Rules; the first that matches decides. They stand before those of qubes.";
        text = optional "" words.text "Lines of policy format 5.0, before all rules.";
        files = optional { } (attrsOf words.file words.text) "Whole policy files, by name.";
      }) "Who may call what.";
  };
}
