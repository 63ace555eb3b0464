# `qubes.json`: what the evaluation yields, and what `nxl` reads. Its shape is published as JSON Schema
# (nixos/qubes.schema.json, made from this).
let
  inherit (builtins) attrNames elemAt genList hashString length listToAttrs map mapAttrs substring;
  shape = import ./shape.nix;
  words = import ./words.nix;
  policy = import ./policy.nix;
  address = import ./address.nix;
  inherit (shape) int bool oneOf nullOr listOf attrsOf record required;

  # Raised by a change that a reader of the version before would misunderstand.
  version = 5;

  mebibytes = int 1 16777216;

  call = record {
    service = required words.service "Which service.";
    argument = required (nullOr words.argument) "Null for any, \"\" for none.";
    target = required words.callee "Whose: QUBE, QUBE:CONTAINER, @dispvm, @dispvm:QUBE or dom0.";
    ask = required bool "Whether the user of the machine is asked.";
  };

  agentWith = control: record {
    qube = required words.name "The qube's name, or dom0.";
    user = required words.user "Whom the agent runs as.";
    users = required (listOf words.userOrAny) "Whom its services may run as besides.";
    socket = required words.path "The socket that the qube itself calls on.";
    services = required (listOf words.path) "The folders of its services.";
    rpc_config = required words.path "The folder of the settings of its services.";
    policy = required (listOf words.path) "The folders of its own policy.";
    calls = required (int 1 65536) "How many calls each may have open.";
    control = required (record control) "Where dom0 is.";
    containers = required
      (attrsOf words.name (record {
        socket = required words.path "The socket that it calls on.";
        services = required words.path "The folder of its services' sockets.";
        rpc_config = required words.path "The folder of the settings of its services.";
      })) "Its containers.";
  };
  agent = agentWith { vchan = required bool "Whether it is heard by dom0's nexusd."; };
  agentOfDom0 = agentWith { socket = required words.path "nexusd's socket."; };

  container = record {
    system = required (nullOr words.storePath) "The toplevel of its system; null where the qube's own closure knows it.";
    services = required (listOf words.service) "What it offers.";
    calls = required (listOf call) "What it may call.";
    private_network = required bool "Whether it has no interface but lo.";
    memory = required (nullOr mebibytes) "The most memory, in MiB.";
    cpu_weight = required (nullOr (int 1 10000)) "Its share of the processors.";
    tasks = required (nullOr (int 1 4194304)) "The most processes and threads.";
    persist = required (listOf words.path) "Folders that are kept.";
    capabilities = required (listOf words.capability) "Its capabilities.";
    autostart = required bool "Whether it starts with its qube.";
  };

  dom0 = record {
    containers = required (attrsOf words.name container) "Containers in dom0.";
    agent = required agentOfDom0 "What its agent reads as /etc/nexus/dom0.json.";
    policy = required (attrsOf words.file words.text) "Its agent's policy's files, for calls between dom0 and its containers.";
  };

  qube = record {
    class = required (oneOf [ "nixos" "whonix" ]) "What it is.";
    system = required (nullOr words.storePath) "The toplevel of its NixOS; null for class \"whonix\".";
    boot = required
      (nullOr (record {
        kernel = required words.path "The kernel, in dom0.";
        initrd = required (nullOr words.path) "The initrd, in dom0.";
        cmdline = required words.line "The kernel's command line.";
      })) "What a qube of class \"whonix\" boots; null for NixOS.";
    type = required (oneOf [ "pvh" "pv" ]) "The kind of guest.";
    memory = required mebibytes "Memory at the start, in MiB.";
    max_memory = required mebibytes "Memory to which it may grow, in MiB.";
    vcpus = required (int 1 128) "vCPUs at the start.";
    max_vcpus = required (int 1 128) "vCPUs that it may be given.";
    autostart = required bool "Whether `nxl apply` starts it.";
    netvm = required (nullOr words.name) "The qube that its first interface leads to.";
    driver_domain = required bool "Whether it has backends for other qubes.";
    networks = required
      (listOf (record {
        backend = required (nullOr words.name) "The qube that the interface leads to; null for dom0.";
        bridge = required (nullOr words.bridge) "The bridge there; null for the default one.";
        ip = required (nullOr words.ipv4) "The address that it has there; null on a bridge of dom0, where that is its own affair.";
        mac = required words.mac "Its Ethernet address, which depends on nothing but the qube's name and the interface's number.";
      })) "Its network interfaces.";
    disks = required
      (listOf (record {
        target = required words.target "The image or the block device, in dom0.";
        vdev = required words.vdev "What the qube sees it as.";
        access = required (oneOf [ "r" "w" ]) "Whether it may write it.";
      })) "Its disks, without the private one.";
    store = required (nullOr words.vdev) "What the qube sees the image of its system's closure as; null where it gets none.";
    private = required
      (nullOr (record {
        size = required mebibytes "Its size, in MiB.";
        target = required words.volume "The volume, FOLDER/NAME.raw, or a block device of dom0.";
        vdev = required words.vdev "What the qube sees it as.";
        format = required (nullOr words.fileSystem) "The file system that it has from the beginning; null where the qube makes it.";
      })) "The volume for what it keeps.";
    ready = required
      (nullOr (record {
        timeout = required (int 1 86400) "Seconds that it may take.";
      })) "How long it may take to say that it is up; null for one that never does.";
    pci = required (listOf words.pci) "The host's PCI devices that it gets.";
    tags = required (listOf words.tag) "Its tags.";
    disposable_template = required bool "Whether disposable qubes are made from it.";
    default_disposable = required (nullOr words.name) "What @dispvm is made from when it calls.";
    services = required (listOf words.service) "What the qube itself offers.";
    calls = required (listOf call) "What the qube itself may call.";
    containers = required (attrsOf words.name container) "Its containers.";
    agent = required agent "What its agent reads as /etc/nexus/agent.json.";
    policy = required (attrsOf words.file words.text) "Its own policy's files, for calls within it.";
  };

  remote = record {
    relay = required words.name "The qube of this host that carries its calls.";
    service = required words.service "The relay's service that takes on calls to it.";
    tags = required (listOf words.tag) "Its tags.";
  };

  document = record {
    version = required (int version version) "The version of this format.";
    host = required
      (record {
        memory = required (nullOr mebibytes) "Memory that there is for qubes, in MiB; null where that is not known.";
      }) "The machine.";
    network = required
      (record {
        prefix = required words.prefix "The addresses of qubes that have a netvm.";
        disposables = required words.prefix "Those of disposable qubes.";
      }) "Addresses of qubes behind netvms.";
    dom0 = required dom0 "dom0 itself.";
    qubes = required (attrsOf words.name qube) "The qubes, by name.";
    remotes = required (attrsOf words.name remote) "Qubes of other hosts, by the names that they have here.";
    policy = required (attrsOf words.file words.text) "dom0's policy files.";
  };

  # --- from a declaration that was checked

  mac = name: number:
    let
      hash = hashString "sha256" "${name} ${toString number}";
      byte = at: substring (2 * at) 2 hash;
    in
    "00:16:3e:${byte 0}:${byte 1}:${byte 2}";

  numbered = list: genList (number: { inherit number; value = elemAt list number; }) (length list);

  callOf = qubeName: call: call // { target = policy.callee qubeName call.target; };

  containerOf = qubeName: _: container: {
    inherit (container) system persist capabilities autostart;
    services = attrNames container.services;
    calls = map (callOf qubeName) container.calls;
    private_network = container.privateNetwork;
    inherit (container.resources) memory tasks;
    cpu_weight = container.resources.cpuWeight;
  };

  # Where the containers of a qube, and those of dom0, have what is theirs: the socket of each, and the sockets of its services. In dom0
  # that is outside of /run/nexus, which nexusd and dom0's agent share.
  folders = { qube = "/run/nexus/containers"; dom0 = "/run/nexus-containers"; };

  callersIn = folder: mapAttrs (container: _: {
    socket = "${folder}/${container}/call.sock";
    services = "${folder}/${container}/services";
    rpc_config = "/etc/nexus/containers/${container}/rpc-config";
  });

  agentOf = name: qube: {
    qube = name;
    inherit (qube) user users;
    socket = "/run/nexus/call.sock";
    services = [ "/etc/nexus-rpc" ];
    rpc_config = "/etc/nexus/rpc-config";
    policy = [ "/run/nexus/policy.d" "/etc/nexus/policy.d" ];
    calls = qube.openCalls;
    control.vchan = true;
    containers = callersIn folders.qube qube.containers;
  };

  dom0Of = dom0: {
    containers = mapAttrs (containerOf "dom0") dom0.containers;
    policy = policy.withinDom0 dom0;
    agent = {
      qube = "dom0";
      user = "nexus";
      users = [ ];
      socket = "/run/nexus/call.sock";
      services = [ "/etc/nexus/dom0-rpc" ];
      rpc_config = "/etc/nexus/dom0-rpc-config";
      policy = [ "/etc/nexus/dom0-policy.d" ];
      calls = dom0.openCalls;
      control.socket = "/run/nexus/control.sock";
      containers = callersIn folders.dom0 dom0.containers;
    };
  };

  netvms = nexus: listToAttrs
    (map (name: { name = nexus.qubes.${name}.netvm; value = null; })
      (builtins.filter (name: nexus.qubes.${name}.netvm != null) (attrNames nexus.qubes)));

  qubeOf = nexus: name: qube: {
    inherit (qube) class system boot type memory vcpus autostart netvm disks pci tags;
    max_memory = if qube.maxmem == null then qube.memory else qube.maxmem;
    max_vcpus = if qube.maxvcpus == null then qube.vcpus else qube.maxvcpus;
    driver_domain = netvms nexus ? ${name};
    networks = map
      ({ number, value }: value // { mac = mac name number; })
      (numbered (
        (if qube.netvm == null then [ ] else [ { backend = qube.netvm; bridge = null; ip = address.ofQube nexus name qube; } ])
        ++ map (bridge: { backend = null; inherit bridge; ip = null; }) qube.bridges
      ));
    store = if qube.system == null then null else qube.store;
    private =
      if qube.private == null then null
      else qube.private // {
        target = if qube.private.target == null then "/var/lib/nxl/volumes/${name}.raw" else qube.private.target;
      };
    ready = if qube.ready == null || qube.class != "nixos" then null else qube.ready;
    disposable_template = qube.disposableTemplate;
    default_disposable = qube.defaultDisposable;
    services = attrNames qube.services;
    calls = map (callOf name) qube.calls;
    containers = mapAttrs (containerOf name) qube.containers;
    agent = agentOf name qube;
    policy = policy.ofQube name qube;
  };
in
{
  inherit version agentOf dom0Of folders;
  shape = document;

  of = nexus: {
    inherit version;
    inherit (nexus) host remotes;
    network = { inherit (nexus.network) prefix disposables; };
    dom0 = dom0Of nexus.dom0;
    qubes = mapAttrs (qubeOf nexus) nexus.qubes;
    policy = policy.ofDom0 nexus;
  };
}
