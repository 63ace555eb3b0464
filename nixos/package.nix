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
  # libxenctrl and libxenguest, whose interface is one release's, are opened by name when they are wanted: no program is linked with them,
  # and what is not linked with is taken out of the path by then.
  postFixup = ''
    for program in $out/bin/*; do
      patchelf --add-rpath ${pkgs.lib.makeLibraryPath [ pkgs.xen ]} "$program"
    done
  '';
  meta.mainProgram = "nxl";
}
