# What a qube of the testbed has beyond its own: it serves jobs, as ../stage-2.sh does, and says how it shut down.
{ config, pkgs, ... }:

let
  watched = map (name: "container@${name}.service") (builtins.attrNames config.containers) ++ [ "nexus-agent.service" ];
in
{
  # What systemd draws on a console takes an emulated processor its time.
  boot.kernelParams = [ "quiet" "systemd.show_status=no" ];

  systemd.services.testing-jobs = {
    description = "Jobs of the testbed";
    wantedBy = [ "multi-user.target" ];
    path = [ pkgs.xenstore ];
    environment.HOME = "/root";
    serviceConfig = { StandardOutput = "journal+console"; KillMode = "process"; };
    script = ''
      set +e
      export PATH=/run/current-system/sw/bin:$PATH
      ${builtins.readFile ../jobs.sh}
    '';
  };

  # It is before them all, and so is stopped after them.
  systemd.services.testing-witness = {
    description = "What became of this qube's containers and its agent";
    wantedBy = [ "multi-user.target" ];
    before = watched;
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStop = "${pkgs.writeShellScriptBin "testing-witness" ''
        for unit in ${toString watched}; do
          echo "@stopped $unit $(systemctl show -P ActiveState "$unit") $(systemctl show -P Result "$unit")"
        done > /dev/console
      ''}/bin/testing-witness";
    };
  };
}
