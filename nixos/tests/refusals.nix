# What is refused, and how it is said: { declaration, says }. Each declaration is wrong in one way.
let
  toplevel = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-work";
  qube = more: { qubes.work = { system = toplevel; } // more; };
  two = work: vault: { qubes.work = { system = toplevel; } // work; qubes.vault = { system = toplevel; } // vault; };
  # `net` beside the qubes of one of these.
  net = declaration: declaration // { qubes = declaration.qubes // { net.system = toplevel; }; };
  behind = more: net (qube ({ netvm = "net"; } // more));
  ofWork = (import ../lib/address.nix).ofName "10.137.0.0/16" "work";
  container = more: qube { containers.mail = more; };
  refused = declaration: says: { inherit declaration; says = if builtins.isList says then says else [ says ]; };
  rule = { service = "q.A"; source = "work"; target = "vault"; action = "allow"; };
in
[
  # --- words
  (refused { qube = { }; } "nexus.qube: there is no such attribute; there are dom0, host, network, policy, qubes, remotes")
  (refused { qubes = 3; } "nexus.qubes: 3 is no set of attributes")
  (refused { qubes."a b".system = toplevel; }
    "nexus.qubes.\"a b\": \"a b\" is not a name: a letter, then at most 30 letters, digits, '_' and '-'")
  (refused { qubes."1st".system = toplevel; }
    "nexus.qubes.\"1st\": \"1st\" is not a name: a letter, then at most 30 letters, digits, '_' and '-'")
  (refused { qubes.a23456789012345678901234567890123.system = toplevel; }
    "nexus.qubes.a23456789012345678901234567890123: \"a23456789012345678901234567890123\" is not a name: a letter, then at most 30 letters, digits, '_' and '-'")
  (refused { qubes.dom0.system = toplevel; } "nexus.qubes.dom0: \"dom0\" is no name for a qube: it means something else")
  (refused { qubes.work-1-link.system = toplevel; } "nexus.qubes.work-1-link: \"work-1-link\" is no name for a qube: it ends like the link of a generation")
  (refused (qube { ready.timeout = 0; }) "nexus.qubes.work.ready.timeout: 0 is not within 1 to 86400")
  (refused (qube { private = { size = 16; format = "ntfs"; }; })
    "nexus.qubes.work.private.format: \"ntfs\" is not a file system: ext4, xfs or btrfs")
  (refused { qubes.default.system = toplevel; } "nexus.qubes.default: \"default\" is no name for a qube: it means something else")
  (refused (qube { memmory = 512; })
    "nexus.qubes.work.memmory: there is no such attribute; there are autostart, boot, bridges, calls, class, containers, defaultDisposable, disks, disposableTemplate, ip, maxmem, maxvcpus, memory, netvm, openCalls, pci, policy, private, ready, services, store, system, tags, type, user, users, vcpus")
  (refused (qube { memory = "512"; }) "nexus.qubes.work.memory: \"512\" is no whole number")
  (refused (qube { memory = 16; }) "nexus.qubes.work.memory: 16 is not within 32 to 16777216")
  (refused (qube { vcpus = 0; }) "nexus.qubes.work.vcpus: 0 is not within 1 to 128")
  (refused (qube { vcpus = 129; }) "nexus.qubes.work.vcpus: 129 is not within 1 to 128")
  (refused (qube { maxvcpus = 129; }) "nexus.qubes.work.maxvcpus: 129 is not within 1 to 128")
  (refused (qube { autostart = "yes"; }) "nexus.qubes.work.autostart: \"yes\" is neither true nor false")
  (refused (qube { class = "debian"; }) "nexus.qubes.work.class: \"debian\" is none of nixos, whonix")
  (refused (qube { type = "hvm"; }) "nexus.qubes.work.type: \"hvm\" is none of pvh, pv")
  (refused (qube { system = "/boot/vmlinuz"; }) "nexus.qubes.work.system: \"/boot/vmlinuz\" is not a path in /nix/store")
  (refused (qube { tags = "office"; }) "nexus.qubes.work.tags: \"office\" is no list")
  (refused (qube { tags = [ "office" "a b" ]; })
    "nexus.qubes.work.tags[1]: \"a b\" is not a tag: 1 to 63 letters, digits, '_', '.' and '-'")
  (refused (qube { pci = [ "03:00.0" ]; }) "nexus.qubes.work.pci: only a qube of type \"pv\" gets PCI devices")
  (refused (qube { pci = [ "3:0" ]; }) "nexus.qubes.work.pci[0]: \"3:0\" is not a PCI address: 0000:03:00.0")
  (refused (qube { bridges = [ "a/b" ]; })
    "nexus.qubes.work.bridges[0]: \"a/b\" is not the name of an interface: at most 15 letters, digits, '_', '.' and '-'")
  (refused (qube { disks = [ { target = "/a,b"; vdev = "xvdc"; } ]; })
    "nexus.qubes.work.disks[0].target: \"/a,b\" is not an absolute path without commas, quotes and backslashes")
  (refused (qube { disks = [ { target = "/a"; } ]; }) "nexus.qubes.work.disks[0].vdev: is missing")
  (refused (qube { disks = [ { target = "/a"; vdev = "sda"; } ]; })
    "nexus.qubes.work.disks[0].vdev: \"sda\" is not a virtual disk: xvda to xvdz")
  (refused (qube { disks = [ { target = "/a"; vdev = "xvdc"; access = "rw"; } ]; })
    "nexus.qubes.work.disks[0].access: \"rw\" is none of r, w")
  (refused (qube { private = { }; }) "nexus.qubes.work.private.size: is missing")
  (refused (qube { private = { size = 16; target = "/srv/work.img"; }; })
    "nexus.qubes.work.private.target: \"/srv/work.img\" is not a volume, FOLDER/NAME.raw, or a block device below /dev")
  (refused (qube { user = "a:b"; }) "nexus.qubes.work.user: \"a:b\" is not the name of a user")
  (refused (qube { users = [ "mail" "a b" ]; }) "nexus.qubes.work.users[1]: \"a b\" is not the name of a user, or * for everybody")
  (refused (qube { openCalls = 0; }) "nexus.qubes.work.openCalls: 0 is not within 1 to 65536")
  (refused { host.memory = 1.5; } "nexus.host.memory: a number with a fraction is no whole number")

  # --- addresses
  (refused (behind { ip = "10.137.0"; }) "nexus.qubes.work.ip: \"10.137.0\" is not an IPv4 address: 10.137.0.7")
  (refused (behind { ip = "10.137.0.07"; }) "nexus.qubes.work.ip: \"10.137.0.07\" is not an IPv4 address: 10.137.0.7")
  (refused (behind { ip = "10.137.0.256"; }) "nexus.qubes.work.ip: \"10.137.0.256\" is not an IPv4 address: 10.137.0.7")
  (refused (behind { ip = "10.138.0.7"; }) "nexus.qubes.work.ip: 10.138.0.7 is none that a qube can have: nexus.network.prefix is 10.137.0.0/16")
  (refused (behind { ip = "10.137.0.0"; }) "nexus.qubes.work.ip: 10.137.0.0 is none that a qube can have: nexus.network.prefix is 10.137.0.0/16")
  (refused (behind { ip = "10.137.255.255"; })
    "nexus.qubes.work.ip: 10.137.255.255 is none that a qube can have: nexus.network.prefix is 10.137.0.0/16")
  (refused (qube { ip = "10.137.0.7"; }) "nexus.qubes.work.ip: is for a qube with a netvm")
  (refused (net (two { netvm = "net"; ip = "10.137.0.7"; } { netvm = "net"; ip = "10.137.0.7"; }))
    "nexus.qubes.work.ip: 10.137.0.7 is taken by vault")
  (refused (net (two { netvm = "net"; } { netvm = "net"; ip = ofWork; }))
    "nexus.qubes.work.ip: ${ofWork} is taken by vault; it comes from the name, and another can be declared")
  (refused { network.prefix = "10.137.0.0"; }
    "nexus.network.prefix: \"10.137.0.0\" is not a range of IPv4 addresses: 10.137.0.0/16; a length of 8 to 28")
  (refused { network.prefix = "10.137.0.0/30"; }
    "nexus.network.prefix: \"10.137.0.0/30\" is not a range of IPv4 addresses: 10.137.0.0/16; a length of 8 to 28")
  (refused { network.prefix = "10.137.3.4/16"; } "nexus.network.prefix: 10.137.3.4/16 has more than its length says: 10.137.0.0/16")
  (refused { network.disposables = "10.138.3.4/22"; }
    "nexus.network.disposables: 10.138.3.4/22 has more than its length says: 10.138.0.0/22")
  (refused { network.disposables = "10.136.0.0/14"; }
    "nexus.network.disposables: 10.136.0.0/14 and nexus.network.prefix, 10.137.0.0/16, have addresses in common")
  (refused { network.dns = [ "dns.example" ]; } "nexus.network.dns[0]: \"dns.example\" is not an IPv4 address: 10.137.0.7")

  # Everything that is wrong is told at once.
  (refused (qube { memory = 1; vcpus = 0; })
    [ "nexus.qubes.work.memory: 1 is not within 32 to 16777216" "nexus.qubes.work.vcpus: 0 is not within 1 to 128" ])

  # --- what a qube is
  (refused { qubes.work = { }; }
    "nexus.qubes.work.system: is missing: a qube of class \"nixos\" runs the toplevel of a NixOS (of a qube that is not NixOS, class is \"whonix\")")
  (refused (qube { boot.kernel = "/boot/vmlinuz"; })
    "nexus.qubes.work.boot: a qube of class \"nixos\" boots its system; only one of class \"whonix\" boots a kernel of its own")
  (refused { qubes.tor.class = "whonix"; } "nexus.qubes.tor.boot: is missing: a qube of class \"whonix\" has no NixOS to boot")
  (refused { qubes.tor = { class = "whonix"; system = toplevel; boot.kernel = "/k"; }; }
    "nexus.qubes.tor.system: a qube of class \"whonix\" has no NixOS")
  (refused { qubes.tor = { class = "whonix"; boot.kernel = "/k"; containers.a = { }; }; }
    "nexus.qubes.tor.containers: only NixOS has containers, this qube is of class \"whonix\"")
  (refused { qubes.tor = { class = "whonix"; boot = { kernel = "/k"; cmdline = "a\nb"; }; }; }
    "nexus.qubes.tor.boot.cmdline: \"a\\nb\" is not one line without quotes and backslashes")

  # --- dom0's containers
  (refused { dom0.containers."a b" = { }; }
    "nexus.dom0.containers.\"a b\": \"a b\" is not a name: a letter, then at most 30 letters, digits, '_' and '-'")
  (refused { dom0.services = { }; } "nexus.dom0.services: there is no such attribute; there are containers, openCalls, policy")
  (refused { dom0.openCalls = 0; } "nexus.dom0.openCalls: 0 is not within 1 to 65536")
  (refused { dom0.containers = [ { name = "a"; } { name = "a"; } ]; } "nexus.dom0.containers.a: 2 have this name")
  (refused { dom0.containers.a.calls = [ { service = "q.A"; target = "work"; } ]; }
    "nexus.dom0.containers.a.calls[0].target: there is no qube \"work\"; there are none")
  (refused { dom0.containers.a.calls = [ { service = "q.A"; target = ":b"; } ]; }
    "nexus.dom0.containers.a.calls[0].target: dom0 has no container \"b\"; it has a")
  (refused { dom0.containers.a.calls = [ { service = "q.A"; target = ":a"; } ]; }
    "nexus.dom0.containers.a.calls[0].target: dom0:a cannot call itself")
  (refused { dom0.containers = { a.calls = [ { service = "q.A"; target = ":b"; } ]; b.services."q.B".program = "/b"; }; }
    "nexus.dom0.containers.a.calls[0].service: dom0:b has no service \"q.A\"; it has q.B")
  (refused { dom0.containers.a.calls = [ { service = "q.A"; target = "@dispvm"; } ]; }
    "nexus.dom0.containers.a.calls[0].target: dom0 has no kind of disposable of its own: @dispvm:QUBE says which")
  (refused { dom0.containers.a.services."q.A".kind = "exec"; }
    "nexus.dom0.containers.a.services.\"q.A\".program: is missing: an exec service is a program")
  (refused { dom0.policy = [ (rule // { source = "dom0:a"; target = "dom0"; }) ]; } "nexus.dom0.policy[0].source: dom0 has no container \"a\"; it has none")
  (refused (qube { calls = [ { service = "q.A"; target = "dom0:a"; } ]; })
    "nexus.qubes.work.calls[0].target: dom0 has no container \"a\"; it has none")
  (refused (qube { calls = [ { service = "q.A"; target = "dom0:a"; } ]; } // { dom0.containers.a = { }; })
    "nexus.qubes.work.calls[0].service: dom0:a has no service \"q.A\"; it has none")

  # --- memory and processors
  (refused (qube { memory = 512; maxmem = 256; })
    "nexus.qubes.work.maxmem: 256 MiB are less than the memory at the start, 512 MiB")
  (refused (qube { vcpus = 4; maxvcpus = 2; }) "nexus.qubes.work.maxvcpus: 2 are less than the vCPUs at the start, 4")
  (refused (qube { memory = 2048; autostart = false; } // { host.memory = 1024; })
    "nexus.qubes.work.memory: 2048 MiB cannot be met: nexus.host.memory is 1024 MiB")
  (refused (two { } { } // { host.memory = 1000; })
    "nexus.qubes: the qubes that start by themselves want 1024 MiB, which cannot be met: nexus.host.memory is 1000 MiB")

  # --- network
  (refused (qube { netvm = "work"; }) "nexus.qubes.work.netvm: a qube cannot be its own")
  (refused (qube { netvm = "net"; }) "nexus.qubes.work.netvm: there is no qube \"net\"; there are work")
  (refused (two { netvm = "vault"; } { netvm = "work"; })
    "nexus.qubes.vault.netvm: vault -> work -> vault is a cycle")

  # --- disks
  (refused (qube { disks = [ { target = "/a"; vdev = "xvdc"; } { target = "/b"; vdev = "xvdc"; } ]; })
    "nexus.qubes.work.disks: two disks are xvdc")
  (refused (qube { disks = [ { target = "/a"; vdev = "xvdb"; } ]; private.size = 64; })
    "nexus.qubes.work.disks: two disks are xvdb")
  (refused (qube { disks = [ { target = "/a"; vdev = "xvda"; } ]; }) "nexus.qubes.work.disks: two disks are xvda")
  (refused (two { disks = [ { target = "/a"; vdev = "xvdc"; access = "w"; } ]; } { disks = [ { target = "/a"; vdev = "xvdc"; access = "w"; } ]; })
    "nexus.qubes: /a is written by vault and work")

  # --- disposables
  (refused (qube { defaultDisposable = "dvm"; }) "nexus.qubes.work.defaultDisposable: there is no qube \"dvm\"; there are work")
  (refused (two { defaultDisposable = "vault"; } { })
    "nexus.qubes.work.defaultDisposable: vault is no template of disposables: nexus.qubes.vault.disposableTemplate is false")

  # --- containers
  (refused (qube { containers = [ { name = "mail"; } { name = "web"; } { name = "mail"; } ]; })
    "nexus.qubes.work.containers.mail: 2 have this name")
  (refused (qube { containers = [ { } ]; }) "nexus.qubes.work.containers[0]: has no name")
  (refused (qube { containers."a.b" = { }; })
    "nexus.qubes.work.containers.\"a.b\": \"a.b\" is not a name: a letter, then at most 30 letters, digits, '_' and '-'")
  (refused (container { system = "/etc"; }) "nexus.qubes.work.containers.mail.system: \"/etc\" is not a path in /nix/store")
  (refused (container { capabilities = [ "net_admin" ]; })
    "nexus.qubes.work.containers.mail.capabilities[0]: \"net_admin\" is not a capability: CAP_NET_BIND_SERVICE")
  (refused (container { persist = [ "var" ]; })
    "nexus.qubes.work.containers.mail.persist[0]: \"var\" is not an absolute path without quotes, backslashes and line ends")
  (refused (container { persist = [ "/var/lib/mail" ]; })
    "nexus.qubes.work.containers.mail.persist: there is nowhere to keep it: nexus.qubes.work.private is null")
  (refused (container { resources.memory = 1024; })
    "nexus.qubes.work.containers.mail.resources.memory: 1024 MiB cannot be met: its qube has at most 512 MiB")
  (refused (container { resources.cpuWeight = 0; })
    "nexus.qubes.work.containers.mail.resources.cpuWeight: 0 is not within 1 to 10000")
  (refused (container { privateNetwork = "host"; })
    "nexus.qubes.work.containers.mail.privateNetwork: \"host\" is neither true nor false")

  # --- services
  (refused (container { services."q.A" = { }; })
    "nexus.qubes.work.containers.mail.services.\"q.A\".program: is missing: an exec service is a program")
  (refused (container { services."q.A" = { program = "/x"; socket = "/y"; }; })
    "nexus.qubes.work.containers.mail.services.\"q.A\".socket: an exec service has none; kind = \"socket\" has")
  (refused (container { services."q.A" = { kind = "socket"; program = "/x"; }; })
    "nexus.qubes.work.containers.mail.services.\"q.A\".program: a socket service has none; kind = \"exec\" has")
  (refused (qube { services."q.A".kind = "socket"; })
    "nexus.qubes.work.services.\"q.A\".socket: is missing: where the service listens")
  (refused (qube { services."q.A" = { program = "/x"; descriptor = true; }; })
    "nexus.qubes.work.services.\"q.A\".descriptor: is for sockets; a program finds the caller in QREXEC_REMOTE_DOMAIN")
  (refused (qube { services."q/A".program = "/x"; })
    "nexus.qubes.work.services.\"q/A\": \"q/A\" is not the name of a service: 1 to 63 letters, digits, '_', '.' and '-'")
  (refused (qube { services."q.A" = { kind = "tcp"; program = "/x"; }; })
    "nexus.qubes.work.services.\"q.A\".kind: \"tcp\" is none of exec, socket")

  # --- calls
  (refused (container { calls = [ { service = "q.A"; target = ":db"; } ]; })
    "nexus.qubes.work.containers.mail.calls[0].target: work has no container \"db\"; it has mail")
  (refused (container { calls = [ { service = "q.A"; target = "vault:gpg"; } ]; })
    "nexus.qubes.work.containers.mail.calls[0].target: there is no qube \"vault\"; there are work")
  (refused (container { calls = [ { service = "q.A"; target = ":mail"; } ]; })
    "nexus.qubes.work.containers.mail.calls[0].target: work:mail cannot call itself")
  (refused (qube { containers.a.calls = [ { service = "q.B"; target = ":b"; } ]; containers.b.services."q.A".program = "/x"; })
    "nexus.qubes.work.containers.a.calls[0].service: work:b has no service \"q.B\"; it has q.A")
  (refused (two { calls = [ { service = "q.A"; target = "vault"; } ]; } { })
    "nexus.qubes.work.calls[0].service: vault has no service \"q.A\"; it has none")
  (refused (qube { calls = [ { service = "q.A"; target = "@dispvm"; } ]; })
    "nexus.qubes.work.calls[0].target: nexus.qubes.work.defaultDisposable is null: @dispvm is nothing")
  (refused (two { calls = [ { service = "q.A"; target = "@dispvm:vault"; } ]; } { })
    "nexus.qubes.work.calls[0].target: vault is no template of disposables: nexus.qubes.vault.disposableTemplate is false")
  (refused (two { calls = [ { service = "q.A"; target = "@dispvm:vault"; } ]; } { disposableTemplate = true; })
    "nexus.qubes.work.calls[0].service: vault has no service \"q.A\"; it has none")
  (refused (qube { calls = [ { service = "q.A"; target = "@anyvm"; } ]; })
    "nexus.qubes.work.calls[0].target: \"@anyvm\" is not whom a call can go to: QUBE, QUBE:CONTAINER, :CONTAINER of the same qube, @dispvm, @dispvm:QUBE or dom0")
  (refused (qube { calls = [ { service = "q.A"; target = "dom0"; argument = "a b"; } ]; })
    "nexus.qubes.work.calls[0].argument: \"a b\" is not an argument: at most 63 letters, digits, '_', '.' and '-'")

  # --- qubes of other hosts
  (refused { remotes.bank = { relay = "net"; service = "q.Relay"; }; } "nexus.remotes.bank.relay: there is no qube \"net\"; there are none")
  (refused (qube { } // { remotes.bank = { relay = "work"; service = "q.Relay"; }; })
    "nexus.remotes.bank.service: work has no service \"q.Relay\"; it has none")
  (refused (qube { services."q.Relay".program = "/x"; } // { remotes.work = { relay = "work"; service = "q.Relay"; }; })
    "nexus.remotes.work: there is a qube of this name on this host")
  (refused (qube { services."q.Relay".program = "/x"; } // { remotes.dom0 = { relay = "work"; service = "q.Relay"; }; })
    "nexus.remotes.dom0: \"dom0\" is no name for a qube: it means something else")
  (refused (qube { services."q.Relay".program = "/x"; calls = [ { service = "q.A"; target = "bank:gpg"; } ]; } // { remotes.bank = { relay = "work"; service = "q.Relay"; }; })
    "nexus.qubes.work.calls[0].target: bank is a qube of another host, and calls to it name no container")

  # --- policy
  (refused (two { } { } // { policy.rules = [ (rule // { target = "gone"; }) ]; })
    "nexus.policy.rules[0].target: there is no qube \"gone\"; there are vault, work")
  (refused (two { } { } // { policy.rules = [ (rule // { source = "work:mail"; }) ]; })
    "nexus.policy.rules[0].source: work has no container \"mail\"; it has none")
  (refused (two { } { } // { policy.rules = [ (rule // { target = "@dispvm:vault"; }) ]; })
    "nexus.policy.rules[0].target: vault is no template of disposables: nexus.qubes.vault.disposableTemplate is false")
  (refused (two { } { } // { policy.rules = [ (rule // { target = "@default"; }) ]; })
    "nexus.policy.rules[0].redirect: is missing: a call that names no target cannot be allowed without one")
  (refused (two { } { } // { policy.rules = [ (rule // { redirect = "gone"; }) ]; })
    "nexus.policy.rules[0].redirect: there is no qube \"gone\"; there are vault, work")
  (refused (two { } { } // { policy.rules = [ (rule // { action = "ask"; proposed = "gone"; }) ]; })
    "nexus.policy.rules[0].proposed: there is no qube \"gone\"; there are vault, work")
  (refused (two { } { } // { policy.rules = [ (rule // { proposed = "vault"; }) ]; })
    "nexus.policy.rules[0].proposed: is for action = \"ask\"")
  (refused (two { } { } // { policy.rules = [ (rule // { action = "deny"; user = "root"; }) ]; })
    "nexus.policy.rules[0]: a denial has no redirect, user or autostart")
  (refused (two { } { } // { policy.rules = [ (rule // { service = "*"; argument = "x"; }) ]; })
    "nexus.policy.rules[0].argument: a rule for every service is for every argument")
  (refused (two { } { } // { policy.rules = [ (rule // { action = "maybe"; }) ]; })
    "nexus.policy.rules[0].action: \"maybe\" is none of allow, deny, ask")
  (refused (two { policy = [ (rule // { target = "gone"; }) ]; } { })
    "nexus.qubes.work.policy[0].target: there is no qube \"gone\"; there are vault, work")
  (refused { policy.files."user.txt" = ""; }
    "nexus.policy.files.\"user.txt\": \"user.txt\" is not the name of a policy file: lower-case letters, digits, '_', '.' and '-', then .policy")
  (refused { policy.files."50-nexus.policy" = ""; }
    "nexus.policy.files.\"50-nexus.policy\": is the file that the rules are written to")
]
