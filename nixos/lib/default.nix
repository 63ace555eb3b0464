# From a declaration (what `nexus` has in a NixOS configuration) to `qubes.json`: pure functions, which need
# nothing but Nix 2.8.
let
  inherit (builtins) concatStringsSep toJSON;
  inherit (import ./read.nix) read;
  check = import ./check.nix;
  document = import ./document.nix;
  policy = import ./policy.nix;
  declaration = import ./declaration.nix;

  evaluated = nexus:
    let result = read "nexus" declaration.nexus nexus; in
    {
      inherit (result) value;
      # What is not well formed is not looked at further.
      problems = if result.problems != [ ] then result.problems else check result.value;
    };

  ofContainers = builtins.mapAttrs (_: container: { rpcConfig = import ./services.nix true container.services; });

  checked = nexus:
    let result = evaluated nexus; in
    if result.problems == [ ] then result.value
    else throw "the declaration is refused:\n  ${concatStringsSep "\n  " result.problems}";
in
rec {
  # All that is wrong with a declaration, a line each.
  problems = nexus: (evaluated nexus).problems;

  # The declaration with all defaults in it, or an error with all problems.
  complete = checked;

  # qubes.json as attributes, and as text.
  spec = nexus: document.of (checked nexus);
  json = nexus: toJSON (spec nexus);

  # What is made for one qube, for the module that puts it there: agent.json, policy, the settings of services.
  ofQube = nexus: name:
    let qube = (checked nexus).qubes.${name}; in
    {
      agent = document.agentOf name qube;
      policy = policy.ofQube name qube;
      rpcConfig = import ./services.nix false qube.services;
      containers = ofContainers qube.containers;
    };

  # The same for dom0.
  ofDom0 = nexus:
    let inherit (checked nexus) dom0; in
    { inherit (document.dom0Of dom0) agent policy; containers = ofContainers dom0.containers; };

  # JSON Schema of qubes.json.
  schema = {
    "$schema" = "https://json-schema.org/draft/2020-12/schema";
    title = "qubes.json, version ${toString document.version}: the qubes of a host, as `nxl apply` reads them";
  } // import ./schema.nix document.shape;

  # For those who read the output by its shape: tests.
  documentProblems = value: (read "qubes.json" document.shape value).problems;

  shapes = declaration;
}
