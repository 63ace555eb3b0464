# The modules, for nixpkgs' module system: each is a path, so that a module that comes in twice counts once.
{
  dom0 = ./dom0.nix;
  qube = ./qube.nix;
  container = ./container.nix;
}
