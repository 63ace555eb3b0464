# Two qubes, three containers, a policy: `nexus = import ./demo.nix;` in dom0's configuration, or `outside.nix` for a dom0 that is no
# NixOS.
{
  host.memory = 4096;

  qubes.shop = {
    memory = 768;
    maxmem = 1024;
    vcpus = 2;
    private.size = 2048;
    tags = [ "business" ];

    config = { pkgs, ... }: {
      time.timeZone = "UTC";
      environment.systemPackages = [ pkgs.htop ];
    };

    # Serves pages, asks the orders of its neighbour and signatures of another qube. It has curl, and the other has not.
    containers.front = {
      config = { pkgs, ... }: { environment.systemPackages = [ pkgs.curl ]; };
      services."nexus.Http" = { kind = "socket"; };
      calls = [
        { service = "nexus.Query"; argument = "orders"; target = ":orders"; }
        { service = "nexus.Sign"; target = "vault:gpg"; ask = true; }
      ];
      resources.memory = 256;
    };

    containers.orders = {
      config = { pkgs, ... }: {
        environment.systemPackages = [
          pkgs.sqlite
          # How many are ordered of what the caller names.
          (pkgs.writeShellScriptBin "query-orders" ''
            PATH=/run/current-system/sw/bin
            orders=/var/lib/orders/orders.db
            [ -e $orders ] || sqlite3 $orders "create table orders (item text, amount integer); insert into orders values ('cups', 12), ('tea', 3);"
            read -r item
            case $item in
              "" | *[!a-z]*) echo "no item has such a name"; exit 1 ;;
            esac
            sqlite3 $orders "select amount from orders where item = '$item';"
          '')
        ];
      };
      services."nexus.Query".program = "/run/current-system/sw/bin/query-orders";
      persist = [ "/var/lib/orders" ];
    };
  };

  qubes.vault = {
    memory = 384;
    private.size = 256;

    containers.gpg = {
      config = { pkgs, ... }: {
        environment.systemPackages = [
          pkgs.gnupg
          # Signs what the caller sends, by a key that was made here and does not leave.
          (pkgs.writeShellScriptBin "sign" ''
            export PATH=/run/current-system/sw/bin GNUPGHOME=/var/lib/gpg
            [ -d $GNUPGHOME/private-keys-v1.d ] || gpg --batch --quiet --passphrase "" --quick-generate-key shop ed25519 sign never
            exec gpg --batch --quiet --clear-sign
          '')
        ];
      };
      services."nexus.Sign".program = "/run/current-system/sw/bin/sign";
      persist = [ "/var/lib/gpg" ];
    };
  };

  policy.rules = [
    # Whatever else is added: business does not reach the vault but by what is declared above.
    { service = "*"; source = "@tag:business"; target = "vault"; action = "deny"; }
  ];
}
