# A qube that others have their network from, and two of them. `net` has the way out: here an interface on a bridge of dom0, and on a
# machine of one's own more likely its network card (`pci`).
{
  network = {
    prefix = "10.137.0.0/16";
    dns = [ "9.9.9.9" ];
  };

  qubes.net = {
    memory = 256;
    bridges = [ "xenbr0" ];
  };

  qubes.mail = {
    memory = 256;
    netvm = "net";
  };

  qubes.web = {
    memory = 256;
    netvm = "net";
    # A known address, for what is configured elsewhere.
    ip = "10.137.0.80";
    # A container has lo alone, unless it is to share the qube's network.
    containers.browser.privateNetwork = false;
    containers.notes = { };
  };
}
