# Units of systemd, from the options of nixpkgs that declare them: what nixpkgs' systemd-lib.nix makes of them, as far as our modules
# and the testing systems use it. An attribute that is not known here is an error, so that nothing declared is left out of a unit.
{ pkgs, defaultPath }:

let
  inherit (builtins)
    attrNames concatMap concatStringsSep elem filter head isBool isList listToAttrs map match removeAttrs replaceStrings toJSON;

  ordering = {
    after = "After"; before = "Before"; bindsTo = "BindsTo"; conflicts = "Conflicts"; description = "Description";
    documentation = "Documentation"; partOf = "PartOf"; requires = "Requires"; requisite = "Requisite"; wants = "Wants";
  };
  # Of links between units, of when they are made anew, and of what is made beside them.
  elsewhere = [
    "enable" "wantedBy" "requiredBy" "restartTriggers" "restartIfChanged" "reloadIfChanged" "stopIfChanged"
    "unitConfig" "serviceConfig" "socketConfig" "sliceConfig" "mountConfig" "environment" "path" "script" "preStart" "what" "where" "type"
    "options"
  ];

  word = value: if isBool value then (if value then "true" else "false") else toString value;
  lines = section: concatStringsSep "" (concatMap
    (name:
      let value = section.${name}; in
      map (one: "${name}=${word one}\n") (if isList value then value else [ value ]))
    (attrNames section));

  unitSection = name: unit:
    let
      unknown = filter (attribute: !(ordering ? ${attribute}) && !(elem attribute elsewhere)) (attrNames unit);
      given = filter (attribute: ordering ? ${attribute}) (attrNames unit);
      of = attribute: {
        name = ordering.${attribute};
        value = let value = unit.${attribute}; in if isList value then concatStringsSep " " value else value;
      };
    in
    if unknown != [ ] then throw "systemd.${name}: ${head unknown} is not known to the testing systems"
    else "[Unit]\n${lines (listToAttrs (map of given) // unit.unitConfig or { })}";

  # A script of a unit, as nixpkgs names and begins it.
  job = name: text:
    let program = replaceStrings [ "@" "\\" ] [ "_" "-" ] name; in
    "${pkgs.writeShellScriptBin program (contents text)}/bin/${program}";
  contents = text: "set -e\n\n${text}\n";

  service = name: unit:
    let
      path = concatStringsSep ":" (concatMap (package: [ "${package}/bin" ]) (unit.path or [ ] ++ defaultPath));
      environment = { PATH = path; } // unit.environment or { };
    in
    "${unitSection "services.${name}" unit}\n[Service]\n"
    + concatStringsSep "" (map (variable: "Environment=${toJSON "${variable}=${environment.${variable}}"}\n") (attrNames environment))
    + lines (
      (if unit ? script then { ExecStart = job "${name}-start" unit.script; } else { })
      // (if unit ? preStart then { ExecStartPre = job "${name}-pre-start" unit.preStart; } else { })
      // unit.serviceConfig or { }
    );

  plain = kind: section: name: unit: "${unitSection "${kind}.${name}" unit}\n[${section}]\n${lines unit."${kind}Config" or { }}";

  kinds = {
    services = { suffix = "service"; text = service; };
    sockets = { suffix = "socket"; text = plain "socket" "Socket"; };
    slices = { suffix = "slice"; text = plain "slice" "Slice"; };
    targets = { suffix = "target"; text = name: unitSection "targets.${name}"; };
  };
in
# { "NAME.service" = { text; job; enable; wantedBy; requiredBy; }; … } from `systemd` of a configuration.
systemd: listToAttrs (concatMap
  (kind: map
    (name:
      let unit = systemd.${kind}.${name}; in
      {
        name = "${name}.${kinds.${kind}.suffix}";
        value = {
          enable = unit.enable or true;
          wantedBy = unit.wantedBy or [ ];
          requiredBy = unit.requiredBy or [ ];
          text = kinds.${kind}.text name unit;
          # What its ExecStart runs, where that is a script.
          job = if unit ? script then contents unit.script else null;
        };
      })
    (attrNames systemd.${kind} or { }))
  (attrNames kinds))
