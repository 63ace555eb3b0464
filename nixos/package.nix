# The programs as a package of nixpkgs', for qubes and a dom0 that is NixOS: nxl, nexusd, nexus-agent, nexus-call, vchan-cat. Needs
# a nixpkgs whose Rust is what Cargo.toml asks for, and whose Xen is the host's.
{ pkgs }:

pkgs.rustPlatform.buildRustPackage {
  pname = "tesseraqt";
  version = (builtins.fromTOML (builtins.readFile ../Cargo.toml)).workspace.package.version;
  src = builtins.path { name = "tesseraqt"; path = ../.; filter = path: _: !builtins.elem (baseNameOf path) [ ".cache" ".git" "target" ]; };
  cargoLock.lockFile = ../Cargo.lock;
  cargoBuildFlags = [ "-p" "nxl" "-p" "tesseraqt-nexus" "-p" "tesseraqt-vchan" ];
  # They want Xen in QEMU, and Debian's packages.
  doCheck = false;
  # bindgen reads Xen's headers.
  nativeBuildInputs = [ pkgs.pkg-config pkgs.rustPlatform.bindgenHook ];
  buildInputs = [ pkgs.xen ];
  meta.mainProgram = "nxl";
}
