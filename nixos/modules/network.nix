# The network of a qube that has a netvm, and of the netvm: two units, each of which follows what xenstore says of interfaces, so that
# one that comes back with another netvm's domain is served like the first. Nothing of it is in the closure: several qubes may have one.
#
# Between the two there is one address, the client's. The netvm is no neighbour with an address of its own but a way out: the client
# knows it by an address of the link alone and by the Ethernet address that Linux gives every backend, the netvm knows the client by
# what dom0 wrote of it. So nobody asks or answers by ARP, and netvms can stand in a row.
let
  gateway = "169.254.1.1";
  backend = "fe:ff:ff:ff:ff:ff";

  # Either unit has no more rights than an interface wants, and comes back when it ends.
  confined = {
    Restart = "always";
    RestartSec = "200ms";
    CapabilityBoundingSet = "CAP_NET_ADMIN";
    NoNewPrivileges = true;
    ProtectHome = true;
    PrivateTmp = true;
  };

  # What is in xenstore is another domain's to write. What is not made of these is passed over.
  checks = ''
    set -f
    octet='(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])'
    is_number() { [[ $1 =~ ^(0|[1-9][0-9]{0,4})$ ]]; }
    is_address() { [[ $1 =~ ^$octet([.]$octet){3}$ ]]; }
    is_mac() { [[ $1 =~ ^[0-9a-f]{2}(:[0-9a-f]{2}){5}$ ]]; }
    is_backend() { [[ $1 =~ ^/local/domain/[0-9]{1,5}/backend/vif/[0-9]{1,5}/[0-9]{1,5}$ ]]; }
  '';
in
{
  inherit gateway;

  # What leaves a client must be the client's, by the routes that the unit makes: what has another source would not be answered
  # through the interface that it came from. Clients begin connections to the outside, not to each other, and nobody begins one to them.
  rules = ''
    table ip nexus
    delete table ip nexus
    table ip nexus {
      chain arrived {
        type filter hook prerouting priority raw; policy accept;
        iifname "vif*" fib saddr . iif oif missing counter drop comment "not the client's"
        iifname "vif*" ip daddr 169.254.0.0/16 drop
      }
      chain forwarded {
        type filter hook forward priority filter; policy accept;
        iifname "vif*" oifname "vif*" counter drop comment "from client to client"
        oifname "vif*" ct state != { established, related } counter drop comment "nobody asked for"
      }
      chain leaves {
        type nat hook postrouting priority srcnat; policy accept;
        iifname "vif*" oifname != "vif*" masquerade
      }
    }
  '';

  # For a qube that is others' netvm.
  netvm = { pkgs, rules }: {
    description = "The network of the qubes whose netvm this is";
    wantedBy = [ "multi-user.target" ];
    after = [ "systemd-modules-load.service" "nftables.service" ];
    path = [ pkgs.iproute2 pkgs.nftables pkgs.xen ];
    # It is ready when the clients are served that were there before it.
    serviceConfig = {
      Type = "notify";
      NotifyAccess = "all";
      TimeoutStartSec = "5min";
    } // confined;
    script = ''
      ${checks}
      nft -f ${rules}
      # Not before the rules hold.
      echo 1 > /proc/sys/net/ipv4/ip_forward

      # serve DOMAIN DEVICE: the backend's half of an interface, when Linux has it. It may be gone at any moment.
      serve() {
        local node=backend/vif/$1/$2 vif=vif$1.$2 address mac status
        is_number "$1" && is_number "$2" || return 0
        # It is closed for good: dom0 waits until the records are gone, and so knows that nothing stands behind them any more.
        if [ "$(xenstore-read "$node/state" "$node/online" 2> /dev/null)" = $'6\n0' ]; then
          xenstore-rm "$node" || true
          [ -n "$(xenstore-list "backend/vif/$1" 2> /dev/null)" ] || xenstore-rm "backend/vif/$1" 2> /dev/null || true
          return 0
        fi
        [ -e "/sys/class/net/$vif" ] || return 0
        status=$(xenstore-read "$node/hotplug-status" 2> /dev/null) || return 0
        address=$(xenstore-read "$node/ip" 2> /dev/null) || address=none
        mac=$(xenstore-read "$node/mac" 2> /dev/null) || mac=none
        if ! is_address "$address" || ! is_mac "$mac"; then
          echo "<4>$vif: not served: dom0 gives no IPv4 address and Ethernet address"
          return 0
        fi
        [ ! -e "/proc/sys/net/ipv6/conf/$vif" ] || echo 1 > "/proc/sys/net/ipv6/conf/$vif/disable_ipv6"
        if ip link set "$vif" address ${backend} up &&
          ip neighbour replace "$address" lladdr "$mac" nud permanent dev "$vif" &&
          ip route replace "$address/32" dev "$vif" &&
          { [ "$status" = connected ] || xenstore-write "$node/hotplug-status" connected; }
        then
          echo "$vif: $address"
        else
          echo "<4>$vif: not served"
        fi
      }
      serve_all() {
        local domain device
        for domain in $(xenstore-list backend/vif 2> /dev/null); do
          for device in $(xenstore-list "backend/vif/$domain" 2> /dev/null); do serve "$domain" "$device"; done
        done
      }

      # netback writes the state of an interface when there is one. The first line comes by itself.
      xenstore-watch backend/vif | while read -r path; do
        case $path in
          */state)
            IFS=/ read -r _ _ domain device _ <<< "$path"
            serve "$domain" "$device"
            ;;
          backend/vif)
            serve_all
            systemd-notify --ready
            ;;
        esac
      done
    '';
  };

  # For a qube that has a netvm.
  client = { pkgs }: {
    description = "The address that dom0 gives this qube";
    wantedBy = [ "multi-user.target" ];
    before = [ "network.target" ];
    path = [ pkgs.iproute2 pkgs.xen ];
    serviceConfig = confined;
    script = ''
      ${checks}
      # configure DEVICE: an interface that is connected, and has an address in its netvm's network. One on a bridge of dom0 has none.
      configure() {
        local node address interface
        is_number "$1" && [ "$(xenstore-read "device/vif/$1/state" 2> /dev/null)" = 4 ] || return 0
        node=$(xenstore-read "device/vif/$1/backend" 2> /dev/null) && is_backend "$node" || return 0
        address=$(xenstore-read "$node/ip" 2> /dev/null) || return 0
        interface=$(ls "/sys/bus/xen/devices/vif-$1/net" 2> /dev/null)
        if ! is_address "$address" || [ -z "$interface" ]; then
          echo "<4>interface $1: not configured: dom0 gives no IPv4 address"
          return 0
        fi
        if ip address replace "$address/32" dev "$interface" &&
          ip link set "$interface" up &&
          ip neighbour replace ${gateway} lladdr ${backend} nud permanent dev "$interface" &&
          ip route replace default via ${gateway} dev "$interface" onlink src "$address"
        then
          echo "$interface: $address"
        else
          echo "<4>$interface: not configured"
        fi
      }

      xenstore-watch device/vif | while read -r path; do
        case $path in
          */state)
            IFS=/ read -r _ _ device _ <<< "$path"
            configure "$device"
            ;;
          device/vif)
            for device in $(xenstore-list device/vif 2> /dev/null); do configure "$device"; done
            ;;
        esac
      done
    '';
  };
}
