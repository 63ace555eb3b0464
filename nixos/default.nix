# For plain Nix:
#
#   nix-instantiate --eval --strict --json nixos -A spec --arg declaration 'import ./qubes.nix' > qubes.json
#
# `declaration` is what `nexus` has in a NixOS configuration, with store paths for systems that are built
# elsewhere. The modules are for nixpkgs' module system.
{ declaration ? { } }:

let
  lib = import ./lib;
in
{
  inherit lib;
  spec = lib.spec declaration;
  problems = lib.problems declaration;
  schema = lib.schema;
  nixosModules = import ./modules;
}
