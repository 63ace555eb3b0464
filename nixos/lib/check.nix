# What a declaration says wrong although each of its values is well formed: a list of problems, each a
# line that begins with the attribute. The declaration is one that `read.nix` accepted.
let
  inherit (builtins)
    attrNames concatMap concatStringsSep elem filter foldl' genList hasAttr head length listToAttrs map match toJSON;
  inherit (import ./read.nix) child;
  policy = import ./policy.nix;
  address = import ./address.nix;

  when = condition: message: if condition then [ message ] else [ ];
  at = genList (number: number);
  sum = foldl' (total: number: total + number) 0;
  distinct = list: attrNames (listToAttrs (map (name: { inherit name; value = null; }) list));
  doubled = list: filter (name: length (filter (other: other == name) list) > 1) (distinct list);
in
nexus:
let
  inherit (nexus) qubes remotes;
  names = attrNames qubes;
  path = child "nexus.qubes";
  there = "there are ${if names == [ ] then "none" else concatStringsSep ", " names}";

  isQube = name: hasAttr name qubes;
  isRemote = name: hasAttr name remotes;

  # --- one qube

  named = here: name:
    when (elem name [ "dom0" "Domain-0" "default" "none" ]) "${here}: ${toJSON name} is no name for a qube: it means something else"
    ++ when (match ".*-[0-9]+-link" name != null) "${here}: ${toJSON name} is no name for a qube: it ends like the link of a generation";

  ofQube = name:
    let
      qube = qubes.${name};
      here = path name;
      maxmem = if qube.maxmem == null then qube.memory else qube.maxmem;
      maxvcpus = if qube.maxvcpus == null then qube.vcpus else qube.maxvcpus;
      vdevs = map (disk: disk.vdev) qube.disks ++ (if qube.private == null then [ ] else [ qube.private.vdev ])
        ++ (if qube.system == null || qube.store == null then [ ] else [ qube.store ]);
    in
    named here name
    ++ when (qube.class == "nixos" && qube.system == null)
      "${here}.system: is missing: a qube of class \"nixos\" runs the toplevel of a NixOS (of a qube that is not NixOS, class is \"whonix\")"
    ++ when (qube.class == "nixos" && qube.boot != null)
      "${here}.boot: a qube of class \"nixos\" boots its system; only one of class \"whonix\" boots a kernel of its own"
    ++ when (qube.class == "whonix" && qube.boot == null) "${here}.boot: is missing: a qube of class \"whonix\" has no NixOS to boot"
    ++ when (qube.class == "whonix" && qube.system != null) "${here}.system: a qube of class \"whonix\" has no NixOS"
    ++ when (qube.class == "whonix" && qube.containers != { }) "${here}.containers: only NixOS has containers, this qube is of class \"whonix\""
    ++ when (maxmem < qube.memory) "${here}.maxmem: ${toString maxmem} MiB are less than the memory at the start, ${toString qube.memory} MiB"
    ++ when (maxvcpus < qube.vcpus) "${here}.maxvcpus: ${toString maxvcpus} are less than the vCPUs at the start, ${toString qube.vcpus}"
    ++ when (nexus.host.memory != null && qube.memory > nexus.host.memory)
      "${here}.memory: ${toString qube.memory} MiB cannot be met: nexus.host.memory is ${toString nexus.host.memory} MiB"
    ++ when (qube.pci != [ ] && qube.type != "pv") "${here}.pci: only a qube of type \"pv\" gets PCI devices"
    ++ map (vdev: "${here}.disks: two disks are ${vdev}") (doubled vdevs)
    ++ netvm here name qube
    ++ ip here name qube
    ++ disposable "${here}.defaultDisposable" qube.defaultDisposable
    ++ concatMap (service: ofService "${child "${here}.services" service}" false qube.services.${service}) (attrNames qube.services)
    ++ concatMap (number: ofCall "${here}.calls[${toString number}]" name name (builtins.elemAt qube.calls number)) (at (length qube.calls))
    ++ concatMap (number: ofRule "${here}.policy[${toString number}]" (builtins.elemAt qube.policy number)) (at (length qube.policy))
    ++ concatMap
      (ofContainer {
        inherit name;
        inherit (qube) containers;
        path = here;
        memory = maxmem;
        keeps = qube.private != null;
      })
      (attrNames qube.containers);

  netvm = here: name: qube:
    if qube.netvm == null then [ ]
    else if qube.netvm == name then [ "${here}.netvm: a qube cannot be its own" ]
    else if !isQube qube.netvm then [ "${here}.netvm: there is no qube ${toJSON qube.netvm}; ${there}" ]
    else
      let cycle = follow [ name ] qube.netvm; in
      # Each cycle is told of once, at the first of its qubes.
      when (cycle != null && elem name cycle && name == head (distinct cycle))
        "${here}.netvm: ${concatStringsSep " -> " cycle} is a cycle";

  # By address, the qubes that have it, in the order of their names.
  holders = builtins.groupBy (name: address.ofQube nexus name qubes.${name}) (filter (name: qubes.${name}.netvm != null) names);

  ip = here: name: qube:
    let
      given = address.ofQube nexus name qube;
      first = head holders.${given};
    in
    if qube.netvm == null then when (qube.ip != null) "${here}.ip: is for a qube with a netvm"
    else
      when (!address.within nexus.network.prefix given)
        "${here}.ip: ${given} is none that a qube can have: nexus.network.prefix is ${nexus.network.prefix}"
      ++ when (first != name)
        "${here}.ip: ${given} is taken by ${first}${if qube.ip == null then "; it comes from the name, and another can be declared" else ""}";

  ofNetwork =
    let inherit (nexus.network) prefix disposables; in
    concatMap
      (name:
        let
          given = nexus.network.${name};
          meant = (address.range given).text';
        in
        when (given != meant) "nexus.network.${name}: ${given} has more than its length says: ${meant}")
      [ "prefix" "disposables" ]
    ++ when (address.overlap prefix disposables)
      "nexus.network.disposables: ${disposables} and nexus.network.prefix, ${prefix}, have addresses in common";

  # The way along netvm from a qube that was passed, if it comes back to one that was passed before.
  follow = passed: name:
    if elem name passed then passed ++ [ name ]
    else if !isQube name || qubes.${name}.netvm == null then null
    else follow (passed ++ [ name ]) qubes.${name}.netvm;

  disposable = here: name:
    if name == null then [ ]
    else if !isQube name then [ "${here}: there is no qube ${toJSON name}; ${there}" ]
    else when (!qubes.${name}.disposableTemplate) "${here}: ${name} is no template of disposables: ${path name}.disposableTemplate is false";

  # A container of a qube, or of dom0 (whose memory nobody has declared: null).
  ofContainer = owner: name:
    let
      container = owner.containers.${name};
      here = child "${owner.path}.containers" name;
    in
    when (container.persist != [ ] && !owner.keeps)
      "${here}.persist: there is nowhere to keep it: ${owner.path}.private is null"
    ++ when (container.resources.memory != null && owner.memory != null && container.resources.memory > owner.memory)
      "${here}.resources.memory: ${toString container.resources.memory} MiB cannot be met: its qube has at most ${toString owner.memory} MiB"
    ++ concatMap (service: ofService (child "${here}.services" service) true container.services.${service}) (attrNames container.services)
    ++ concatMap (number: ofCall "${here}.calls[${toString number}]" owner.name "${owner.name}:${name}" (builtins.elemAt container.calls number))
      (at (length container.calls));

  # --- dom0

  ofDom0 =
    concatMap (ofContainer { name = "dom0"; path = "nexus.dom0"; memory = null; keeps = true; inherit (nexus.dom0) containers; })
      (attrNames nexus.dom0.containers)
    ++ concatMap (number: ofRule "nexus.dom0.policy[${toString number}]" (builtins.elemAt nexus.dom0.policy number))
      (at (length nexus.dom0.policy));

  # The containers of a qube that is there, or of dom0.
  containersOf = owner: if owner == "dom0" then nexus.dom0.containers else qubes.${owner}.containers;

  ofService = here: inContainer: service:
    when (service.kind == "exec" && service.program == null) "${here}.program: is missing: an exec service is a program"
    ++ when (service.kind == "exec" && service.socket != null) "${here}.socket: an exec service has none; kind = \"socket\" has"
    ++ when (service.kind == "socket" && service.program != null) "${here}.program: a socket service has none; kind = \"exec\" has"
    ++ when (service.kind == "socket" && service.socket == null && !inContainer) "${here}.socket: is missing: where the service listens"
    ++ when (service.kind == "exec" && service.descriptor && !inContainer)
      "${here}.descriptor: is for sockets; a program finds the caller in QREXEC_REMOTE_DOMAIN";

  # --- calls and rules

  # Whether a qube or container that is there offers a service: problems.
  offers = here: target: service:
    let
      qube = policy.qubeOf target;
      container = policy.containerOf target;
      offered = if container == null then qubes.${qube}.services else (containersOf qube).${container}.services;
    in
    when ((qube == "dom0" || qubes.${qube}.class == "nixos") && !hasAttr service offered)
      "${here}.service: ${target} has no service ${toJSON service}; it has ${if offered == { } then "none" else concatStringsSep ", " (attrNames offered)}";

  # Whether there is such a qube or container: problems.
  exists = here: target:
    let
      qube = policy.qubeOf target;
      container = policy.containerOf target;
      containers = attrNames (containersOf qube);
    in
    if qube == null then [ ]
    else if isRemote qube then
      when (container != null || match ".*:.*" target != null) "${here}: ${qube} is a qube of another host, and calls to it name no container"
    else if qube != "dom0" && !isQube qube then [ "${here}: there is no qube ${toJSON qube}; ${there}" ]
    else when (container != null && !elem container containers)
      "${here}: ${qube} has no container ${toJSON container}; it has ${if containers == [ ] then "none" else concatStringsSep ", " containers}";

  ofCall = here: qubeName: source: call:
    let
      target = policy.callee qubeName call.target;
      wrong = exists "${here}.target" target;
      template = match "@dispvm:(.*)" target;
      default = if qubeName == "dom0" then null else qubes.${qubeName}.defaultDisposable;
    in
    if target == source then [ "${here}.target: ${source} cannot call itself" ]
    else if wrong != [ ] then wrong
    else if target == "@dispvm" then
      if qubeName == "dom0" then [ "${here}.target: dom0 has no kind of disposable of its own: @dispvm:QUBE says which" ]
      else if default == null then [ "${here}.target: ${path qubeName}.defaultDisposable is null: @dispvm is nothing" ]
      else if isQube default then offers here default call.service
      else [ ]
    else if template != null then
      let missing = disposable "${here}.target" (head template); in
      if missing != [ ] then missing else offers here (head template) call.service
    # What a qube of another host offers, that host knows.
    else if policy.qubeOf target == null || isRemote (policy.qubeOf target) then [ ]
    else offers here target call.service;

  ofRule = here: rule:
    when (rule.service == "*" && rule.argument != null) "${here}.argument: a rule for every service is for every argument"
    ++ when (rule.action == "allow" && rule.target == "@default" && rule.redirect == null)
      "${here}.redirect: is missing: a call that names no target cannot be allowed without one"
    ++ when (rule.action == "deny" && (rule.redirect != null || rule.user != null || rule.autostart != null))
      "${here}: a denial has no redirect, user or autostart"
    ++ when (rule.action != "ask" && rule.proposed != null) "${here}.proposed: is for action = \"ask\""
    ++ exists "${here}.source" rule.source
    ++ exists "${here}.target" rule.target
    ++ (if rule.redirect == null then [ ] else exists "${here}.redirect" rule.redirect)
    ++ (if rule.proposed == null then [ ] else exists "${here}.proposed" rule.proposed)
    ++ (let template = match "@dispvm:([A-Za-z].*)" rule.target; in
      if template == null then [ ] else disposable "${here}.target" (head template));

  # --- qubes of other hosts

  ofRemote = name:
    let
      remote = remotes.${name};
      here = child "nexus.remotes" name;
    in
    named here name
    ++ when (isQube name) "${here}: there is a qube of this name on this host"
    ++ (if !isQube remote.relay then [ "${here}.relay: there is no qube ${toJSON remote.relay}; ${there}" ]
    else offers here remote.relay remote.service);

  # --- all qubes

  wanted = sum (map (name: qubes.${name}.memory) (filter (name: qubes.${name}.autostart) names));

  # Who writes what: [ { qube, target } ].
  written = concatMap
    (name: map (disk: { inherit name; inherit (disk) target; }) (filter (disk: disk.access == "w") qubes.${name}.disks))
    names;
  shared = target:
    "nexus.qubes: ${target} is written by ${concatStringsSep " and " (map (one: one.name) (filter (one: one.target == target) written))}";

  ofPolicy =
    concatMap (number: ofRule "nexus.policy.rules[${toString number}]" (builtins.elemAt nexus.policy.rules number))
      (at (length nexus.policy.rules))
    ++ when (hasAttr policy.fileName nexus.policy.files)
      "${child "nexus.policy.files" policy.fileName}: is the file that the rules are written to";
in
concatMap ofQube names
++ ofDom0
++ concatMap ofRemote (attrNames remotes)
++ ofNetwork
++ when (nexus.host.memory != null && wanted > nexus.host.memory)
    "nexus.qubes: the qubes that start by themselves want ${toString wanted} MiB, which cannot be met: nexus.host.memory is ${toString nexus.host.memory} MiB"
++ map shared (doubled (map (one: one.target) written))
++ ofPolicy
