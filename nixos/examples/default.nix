# The examples as documents, of which the tutorial applies one after the other:
#
#   nix-build nixos/examples -A demo -o demo.json
{ pkgs ? import <nixpkgs> { }, package ? import ../package.nix { inherit pkgs; } }:

let
  # `package` puts the agent, and what dom0's `nxl exec` calls, into the qubes.
  document = file: import ../outside.nix {
    nixpkgs = null;
    inherit pkgs;
    declaration = import file // { inherit package; };
  };
in
{
  demo = document ./demo.nix;
  demo-next = document ./demo-next.nix;
}
