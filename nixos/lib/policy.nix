# Rules and calls as lines of policy format 5.0 (docs/policy.md), each in the file of whoever decides it:
# dom0 decides what goes from one qube to another, and a qube's agent what stays within it.
let
  inherit (builtins) attrNames concatMap concatStringsSep filter head map match;

  # What the lines come from, in the order in which they stand.
  fileName = "50-nexus.policy";

  argumentWord = argument: if argument == null then "*" else "+${argument}";

  line = rule:
    let
      yesNo = value: if value then "yes" else "no";
      parameter = key: value: if value == null then [ ] else [ "${key}=${value}" ];
      flag = key: value: if value == null then [ ] else [ "${key}=${yesNo value}" ];
    in
    concatStringsSep " " ([ rule.service (argumentWord rule.argument) rule.source rule.target rule.action ]
      ++ parameter "target" rule.redirect
      ++ parameter "default_target" rule.proposed
      ++ parameter "user" rule.user
      ++ flag "notify" rule.notify
      ++ flag "autostart" rule.autostart);

  # The qube of QUBE, QUBE:CONTAINER and QUBE:*, and dom0 of dom0:CONTAINER and dom0:*; null of any other token.
  qubeOf = token:
    let parts = match "([A-Za-z][A-Za-z0-9_-]*)(:.*)?" token; in
    if parts == null || token == "dom0" then null else head parts;

  # The same, and dom0 of what names dom0 itself.
  ownerOf = token: if token == "dom0" || token == "@adminvm" then "dom0" else qubeOf token;

  # The container of QUBE:CONTAINER; null of any other token.
  containerOf = token:
    let parts = match "[A-Za-z][A-Za-z0-9_-]*:([A-Za-z][A-Za-z0-9_-]*)" token; in
    if parts == null then null else head parts;

  # `:mail` of the qube `work` is `work:mail`.
  callee = qube: target: if match ":.*" target != null then "${qube}${target}" else target;

  callRule = qube: source: call: {
    inherit (call) service argument;
    inherit source;
    target = callee qube call.target;
    action = if call.ask then "ask" else "allow";
    redirect = null;
    proposed = null;
    user = null;
    notify = null;
    autostart = null;
  };

  isWithin = qube: rule: ownerOf rule.source == qube && ownerOf rule.target == qube;

  # All rules of a qube: its own, those of its calls, and those of its containers' calls. dom0 itself declares no calls.
  rulesOf = name: qube:
    qube.policy
    ++ map (callRule name name) (qube.calls or [ ])
    ++ concatMap (container: map (callRule name "${name}:${container}") qube.containers.${container}.calls)
      (attrNames qube.containers);

  fileOf = name: lines: if lines == [ ] then { } else { ${name} = concatStringsSep "\n" lines + "\n"; };
  file = fileOf fileName;

  # What dom0 does in qubes and containers by `nxl exec', `logs', `container' and `tree': behind all that is declared, so that whoever denies
  # some of it can. Containers are nobody whom @anyvm means. (The lines for qubes are nexus/policy.d/90-nexus.policy's.)
  administrationFile = "90-nexus.policy";
  allowed = target: map (service: "${service} * @adminvm ${target} allow");
  ofContainers = name: allowed "${name}:*" inContainers;
  administration = qubes:
    if qubes == { } then [ ]
    else allowed "@anyvm" (inContainers ++ [ "nexus.Container" ])
      ++ concatMap ofContainers (filter (name: qubes.${name}.containers != { }) (attrNames qubes));

  # The services of administration that a container has, too.
  inContainers = [ "qubes.VMExec" "nexus.ExecAs" "nexus.Logs" ];
in
{
  inherit inContainers callee containerOf fileName qubeOf rulesOf;

  # What the agent of a qube decides by: { FILE = TEXT; }.
  ofQube = name: qube: file (map line (filter (isWithin name) (rulesOf name qube)));

  # What dom0's own agent decides by: calls between dom0 and its containers.
  withinDom0 = dom0:
    file (map line (filter (isWithin "dom0") (rulesOf "dom0" dom0)))
    // (if dom0.containers == { } then { }
    else fileOf administrationFile (ofContainers "dom0" ++ allowed "@adminvm" [ "nexus.Container" ]));

  # What dom0 decides by: calls from one qube to another, or to dom0 and from there.
  ofDom0 = nexus:
    let
      between = name: qube: filter (rule: !isWithin name rule) (rulesOf name qube);
      text = nexus.policy.text;
      last = builtins.stringLength text - 1;
      withoutEnd = if builtins.substring last 1 text == "\n" then builtins.substring 0 last text else text;
      lines = (if text == "" then [ ] else [ withoutEnd ])
        ++ map line nexus.policy.rules
        ++ map line (between "dom0" nexus.dom0)
        ++ concatMap (name: map line (between name nexus.qubes.${name})) (attrNames nexus.qubes);
    in
    file lines // fileOf administrationFile (administration nexus.qubes) // nexus.policy.files;
}
