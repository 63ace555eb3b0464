# The qubes of a host whose dom0 is no NixOS: the same declaration as dom0's module takes, evaluated to its qubes.json.
#
#   nixpkgs      a nixpkgs, or its flake
#   declaration  what `nexus` has in a NixOS configuration, or a module that sets it
{ nixpkgs, declaration, system ? "x86_64-linux", pkgs ? nixpkgs.legacyPackages.${system} or (import nixpkgs { inherit system; }) }:

(pkgs.lib.evalModules {
  modules = [
    ./modules/dom0.nix
    # What dom0's module says of dom0 itself is for a NixOS.
    { config._module.check = false; }
    { config.nexus = declaration; }
  ];
  specialArgs = { inherit pkgs; };
}).config.nexus.spec
