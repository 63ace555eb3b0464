{
  description = "Qubes and containers declared in Nix, on Xen without libxl";

  # For the package, whose Rust is newer than that of a release which is some months old, and for the example's qubes. A
  # configuration that takes the modules lets it follow its own: inputs.tesseraqt.inputs.nixpkgs.follows = "nixpkgs".
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      modules = import ./nixos/modules;
      system = "x86_64-linux";
      package = import ./nixos/package.nix { pkgs = nixpkgs.legacyPackages.${system}; };
    in
    {
      # Pure functions: spec, json, problems, schema.
      lib = import ./nixos/lib // {
        # qubes.json for a dom0 that is no NixOS: { declaration, nixpkgs, system ? … }.
        outside = import ./nixos/outside.nix;
        microvmRunner = ./nixos/runners/xen.nix;
      };

      nixosModules = modules // { default = modules.dom0; };

      # `pkgs.tesseraqt` of a nixpkgs that takes it.
      overlays.default = final: _: { tesseraqt = import ./nixos/package.nix { pkgs = final; }; };

      packages.${system} = {
        default = package;
        # `nix profile install .#nxl`: all programs, under the name by which they are looked for.
        nxl = package;
        # `nix build .#qubes`: the example's qubes.json.
        qubes = import ./nixos/outside.nix {
          inherit nixpkgs;
          declaration = import ./nixos/examples/demo.nix;
        };
      };

      # `nix run . -- list`
      apps.${system}.default = { type = "app"; program = "${package}/bin/nxl"; };
    };
}
