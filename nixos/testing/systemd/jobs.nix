# What a qube of the testbed has beyond its own: it serves jobs, as ../stage-2.sh does.
{ pkgs, ... }:

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
}
