# A declaration that sets every option there is, each to something else than its default. A test sees to it
# that none is missing.
let
  # Store paths have no `e` in their hashes.
  toplevel = name: "/nix/store/${builtins.replaceStrings [ "e" ] [ "g" ] (builtins.substring 0 32 (builtins.hashString "sha256" name))}-nixos-system-${name}";
in
{
  host.memory = 4096;
  network = { prefix = "10.20.0.0/16"; disposables = "10.21.4.0/22"; dns = [ "9.9.9.9" "149.112.112.112" ]; };

  dom0 = {
    openCalls = 16;
    policy = [
      { service = "nexus.Fetch"; source = "dom0:*"; target = "dom0"; action = "deny"; notify = false; }
      { service = "nexus.Fetch"; argument = "list"; source = "dom0:update"; target = "@default"; action = "ask"; redirect = "net"; proposed = "net"; }
      { service = "nexus.Relay"; source = "dom0:backup"; target = "net"; action = "allow"; user = "guest"; autostart = true; }
    ];
    containers.update = {
      system = toplevel "update";
      services."nexus.Put" = { program = "/bin/put"; exitOnClientEof = true; };
      services."nexus.Status" = { kind = "socket"; socket = "/run/nexus/services/nexus.Status"; descriptor = true; exitOnServiceEof = true; };
      calls = [
        { service = "nexus.Relay"; argument = "updates"; target = "net"; }
        { service = "nexus.Keep"; target = ":backup"; ask = true; }
      ];
      privateNetwork = false;
      resources = { memory = 256; cpuWeight = 20; tasks = 32; };
      persist = [ "/var/cache/update" ];
      capabilities = [ "CAP_NET_BIND_SERVICE" ];
      autostart = false;
    };
    containers.backup.services."nexus.Keep".program = "/bin/keep";
  };

  qubes.net = {
    system = toplevel "net";
    memory = 256;
    type = "pv";
    pci = [ "0000:03:00.0" ];
    bridges = [ "xenbr0" ];
    services."nexus.Resolve" = { kind = "socket"; socket = "/run/resolver"; descriptor = true; };
    services."nexus.Relay".program = "/bin/relay";
  };

  qubes.shop = {
    class = "nixos";
    system = toplevel "shop";
    type = "pv";
    memory = 384;
    maxmem = 768;
    vcpus = 2;
    maxvcpus = 4;
    netvm = "net";
    ip = "10.20.0.7";
    disks = [
      { target = "/var/lib/images/catalogue.img"; vdev = "xvdc"; }
      { target = "/var/lib/images/orders.img"; vdev = "xvdd"; access = "w"; }
    ];
    store = "xvdf";
    private = { size = 2048; target = "/var/lib/images/shop.raw"; vdev = "xvde"; format = "xfs"; };
    ready.timeout = 90;
    tags = [ "office" ];
    defaultDisposable = "viewer";
    user = "clerk";
    users = [ "guest" "mail" ];
    openCalls = 32;
    services."nexus.Report" = { program = "/run/current-system/sw/bin/report"; exitOnServiceEof = true; exitOnClientEof = true; };
    calls = [
      { service = "nexus.Log"; argument = ""; target = ":orders"; }
      { service = "nexus.View"; target = "@dispvm"; ask = true; }
      { service = "nexus.Status"; target = "dom0:update"; }
    ];
    policy = [
      { service = "nexus.Log"; source = "shop:*"; target = "shop:orders"; action = "deny"; notify = false; }
      { service = "nexus.Pick"; argument = "one"; source = "shop"; target = "@anyvm"; action = "ask"; proposed = "net"; }
      { service = "nexus.View"; source = "shop"; target = "@default"; action = "allow"; redirect = "@dispvm:viewer"; user = "guest"; autostart = true; }
    ];
    containers.front = {
      system = toplevel "front";
      services."nexus.Http" = { kind = "socket"; socket = "/run/nexus/services/nexus.Http"; descriptor = true; exitOnServiceEof = true; };
      calls = [
        { service = "nexus.Query"; argument = "orders"; target = ":orders"; }
        { service = "nexus.Resolve"; target = "net"; }
        { service = "nexus.Sign"; argument = "key"; target = "vault:gpg"; ask = true; }
      ];
      privateNetwork = false;
      resources = { memory = 128; cpuWeight = 50; tasks = 64; };
      persist = [ "/var/lib/front" ];
      capabilities = [ "CAP_NET_BIND_SERVICE" ];
      autostart = false;
    };
    containers.orders = {
      services."nexus.Query" = { program = "/bin/query"; exitOnClientEof = true; };
      services."nexus.Log".program = "/bin/log";
    };
  };

  # Also as a list, such as several modules contribute to.
  qubes.vault = {
    system = toplevel "vault";
    autostart = false;
    containers = [ { name = "gpg"; services."nexus.Sign".program = "/bin/sign"; } ];
  };

  qubes.viewer = {
    system = toplevel "viewer";
    autostart = false;
    disposableTemplate = true;
    services."nexus.View".program = "/run/current-system/sw/bin/view";
  };

  qubes.whonix = {
    class = "whonix";
    boot = { kernel = "/var/lib/whonix/vmlinuz"; initrd = "/var/lib/whonix/initrd"; cmdline = "root=/dev/xvda1 console=hvc0"; };
    disks = [ { target = "/var/lib/whonix/root.img"; vdev = "xvda"; access = "w"; } ];
    netvm = "net";
    memory = 1024;
  };

  remotes.bank = { relay = "net"; service = "nexus.Relay"; tags = [ "abroad" ]; };

  policy = {
    text = "nexus.Time * @anyvm dom0 allow\n";
    rules = [
      { service = "*"; source = "whonix"; target = "@anyvm"; action = "deny"; }
      { service = "nexus.Mail"; source = "whonix"; target = "@default"; action = "allow"; redirect = "vault"; user = "mail"; notify = true; autostart = false; }
      { service = "nexus.Clip"; argument = "x"; source = "@anyvm"; target = "@anyvm"; action = "ask"; proposed = "vault"; }
    ];
    files."30-user.policy" = "nexus.Print * @tag:office net ask\n";
  };
}
