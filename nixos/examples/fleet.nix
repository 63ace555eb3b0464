# Three hosts out of one file: two shops, and the vault that signs for them, on a host of its own. `systems` has the toplevels of
# their qubes; it takes no nixpkgs to evaluate what the hosts are:
#
#   for host in berlin oslo lisbon; do
#     nix-instantiate --eval --strict --json nixos/examples/fleet.nix --arg systems 'import ./systems.nix' -A documents.$host > $host.json
#   done
#   nxl plan --host berlin --host oslo --host lisbon %h.json
#
# A dom0 that is NixOS takes its declaration as it is: `nexus = (import ./fleet.nix { inherit systems; }).declarations.berlin;`.
{ systems, lib ? import ../lib }:

let
  inherit (builtins) attrNames filter foldl' listToAttrs map mapAttrs;

  # --- what there is on each host: `calls` between hosts are in `between`, below

  # Carries calls from host to host. How, is its own business: `systems.relay` has a program for it.
  relay = {
    system = systems.relay;
    memory = 256;
    bridges = [ "xenbr0" ];
    services."nexus.Relay".program = "/run/current-system/sw/bin/relay";
  };

  shop = {
    system = systems.shop;
    memory = 768;
    private.size = 2048;
    tags = [ "business" ];
    services."nexus.Http" = { kind = "socket"; socket = "/run/shop.sock"; };
  };

  vault = {
    system = systems.vault;
    memory = 384;
    private.size = 256;
    services."nexus.Sign".program = "/run/current-system/sw/bin/sign";
  };

  hosts = {
    berlin = { host.memory = 4096; qubes = { inherit relay shop; }; };
    oslo = { host.memory = 2048; qubes = { inherit relay; shop = shop // { memory = 512; }; }; };
    lisbon = { host.memory = 2048; qubes = { inherit relay vault; }; };
  };

  # --- which calls go from host to host. It is written down once, and each end is told its half.

  between = map (host: { from = { inherit host; qube = "shop"; }; to = { host = "lisbon"; qube = "vault"; }; service = "nexus.Sign"; })
    [ "berlin" "oslo" ];

  # What a qube is called on other hosts.
  nameOf = place: "${place.host}-${place.qube}";
  there = place: {
    name = nameOf place;
    value = { relay = "relay"; service = "nexus.Relay"; tags = [ "elsewhere" ]; };
  };

  declarationOf = name: declared:
    let
      out = filter (call: call.from.host == name) between;
      into = filter (call: call.to.host == name) between;
      # The caller's host decides whether a call leaves it, and the other whether it comes in.
      calling = qubes: call: qubes // {
        ${call.from.qube} = qubes.${call.from.qube} // {
          calls = qubes.${call.from.qube}.calls or [ ] ++ [ { inherit (call) service; target = nameOf call.to; } ];
        };
      };
    in
    declared // {
      qubes = foldl' calling declared.qubes out;
      remotes = listToAttrs (map (call: there call.to) out ++ map (call: there call.from) into);
      policy.rules =
        map (call: { inherit (call) service; source = nameOf call.from; target = call.to.qube; action = "allow"; }) into
        # Nobody from elsewhere calls anything else.
        ++ [ { service = "*"; source = "@tag:elsewhere"; target = "@anyvm"; action = "deny"; } ];
    };
in
rec {
  # What `nexus` has in the NixOS configuration of each dom0.
  declarations = mapAttrs declarationOf hosts;

  # What `nxl apply` takes.
  documents = mapAttrs (_: lib.spec) declarations;

  # For `nix-copy-closure`, or a binary cache: the systems of each host.
  closures = mapAttrs (_: document: map (name: document.qubes.${name}.system) (attrNames document.qubes)) documents;
}
