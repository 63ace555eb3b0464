# The demo a day later: front has sqlite as well, so shop gets a new generation.
let
  demo = import ./demo.nix;
  inherit (demo.qubes) shop;
in
demo // {
  qubes = demo.qubes // {
    shop = shop // {
      containers = shop.containers // {
        front = shop.containers.front // {
          config = { pkgs, ... }: { environment.systemPackages = [ pkgs.curl pkgs.sqlite ]; };
        };
      };
    };
  };
}
