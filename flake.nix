{
  description = "Qubes and containers declared in Nix, on Xen without libxl";

  # Only for the qubes of the example; a configuration that takes the modules brings its own.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.05";

  outputs = { self, nixpkgs }:
    let
      modules = import ./nixos/modules;
    in
    {
      # Pure functions: spec, json, problems, schema.
      lib = import ./nixos/lib // {
        # qubes.json for a dom0 that is no NixOS: { declaration, nixpkgs, system ? … }.
        outside = import ./nixos/outside.nix;
        microvmRunner = ./nixos/runners/xen.nix;
      };

      nixosModules = modules // { default = modules.dom0; };

      # `nix build .#qubes`: the example's qubes.json.
      packages.x86_64-linux.qubes = import ./nixos/outside.nix {
        inherit nixpkgs;
        declaration = import ./nixos/examples/demo.nix;
      };
    };
}
