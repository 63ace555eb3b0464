//! One policy of every kind, with decisions worked out by hand from the format's documentation.

use nexus::policy::{
    Call, Decision, Denial, Place, Policy, PolicyFolders, Principal, Service, System, Verdict, rules,
};
use rustix::fs::{FileType, Mode};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const UUID: &str = "12345678-abcd-abcd-abcd-12345678abcd";

/// work and mail are office qubes, vault is not; disp1 was made from office-dvm; net does not run.
fn system() -> System {
    serde_json::from_str(&format!(
        r#"{{ "qubes": {{
            "work": {{ "type": "AppVM", "tags": ["office"], "default_dispvm": "office-dvm",
                       "containers": ["mail", "web", "db"] }},
            "mail": {{ "type": "AppVM", "tags": ["office"], "uuid": "{UUID}" }},
            "vault": {{ "type": "StandaloneVM", "tags": ["secret"], "containers": ["gpg"] }},
            "net": {{ "type": "AppVM", "running": false }},
            "debian": {{ "type": "TemplateVM", "running": false }},
            "office-dvm": {{ "type": "AppVM", "tags": ["office-disposables"], "template_for_dispvms": true,
                             "running": false }},
            "other-dvm": {{ "type": "AppVM", "template_for_dispvms": true, "running": false }},
            "disp1": {{ "type": "DispVM", "disposable_of": "office-dvm" }}
        }} }}"#
    ))
    .expect("a fixture")
}

fn policy(text: &str) -> Policy {
    Policy::new(rules(text, "t.policy").unwrap_or_else(|errors| panic!("{}", errors[0])))
}

fn call(source: &str, target: &str, service: &str) -> Call {
    Call {
        source: Principal::parse(source).expect("a fixture"),
        target: Place::intended(target).expect("a fixture"),
        service: Service::parse(service).expect("a fixture"),
    }
}

fn decide(policy: &Policy, source: &str, target: &str, service: &str) -> Decision {
    let call = call(source, target, service);
    let decision = policy.decide(&call, &system());
    // What explains a decision decides the same.
    let explained = policy.explain(&call, &system());
    assert_eq!(explained.decision, decision);
    if decision.compared > 0 {
        assert_eq!(explained.matched.as_ref().map(|rule| rule.origin.clone()), decision.rule);
        let matched = usize::from(explained.matched.is_some());
        assert_eq!(explained.passed.len() + matched, decision.compared);
    }
    decision
}

/// The line of the rule that decides (0: none), and the verdict.
fn verdict(policy: &Policy, source: &str, target: &str, service: &str) -> (usize, String) {
    let decision = decide(policy, source, target, service);
    (decision.rule.map_or(0, |rule| rule.line), decision.verdict.to_string())
}

/// Each case: source, target, service, line of the rule that decides, verdict.
fn check(text: &str, cases: &[(&str, &str, &str, usize, &str)]) {
    let policy = policy(text);
    for (source, target, service, line, expected) in cases {
        assert_eq!(
            verdict(&policy, source, target, service),
            (*line, (*expected).to_owned()),
            "{source} -> {target}: {service}"
        );
    }
}

const DENIED: &str = "deny: a rule denies it";
const NO_RULE: &str = "deny: no rule matches";
const NO_TARGET: &str = "deny: the caller named no target that there is, and the rule has no target=";

#[test]
fn the_first_rule_that_matches_decides() {
    check(
        "q.A * work vault allow\n\
         q.A * work @anyvm deny\n\
         q.A * work mail allow\n\
         q.B * @anyvm vault allow user=root\n",
        &[
            ("work", "vault", "q.A", 1, "allow target=vault"),
            ("work", "mail", "q.A", 2, DENIED),
            ("mail", "vault", "q.A", 0, NO_RULE),
            ("mail", "vault", "q.B+x", 4, "allow target=vault user=root"),
            ("work", "vault", "q.C", 0, NO_RULE),
        ],
    );
    assert_eq!(verdict(&policy(""), "work", "vault", "q.A"), (0, NO_RULE.into()));
}

#[test]
fn an_argument_is_any_or_one_or_empty() {
    check(
        "q.A +one * vault allow\n\
         q.A + * vault deny\n\
         q.A * * vault allow user=any\n\
         * * * mail allow\n",
        &[
            ("work", "vault", "q.A+one", 1, "allow target=vault"),
            ("work", "vault", "q.A", 2, DENIED),
            ("work", "vault", "q.A+", 2, DENIED),
            ("work", "vault", "q.A+two", 3, "allow target=vault user=any"),
            ("work", "vault", "q.A+one+", 3, "allow target=vault user=any"),
            ("work", "mail", "q.Z+x", 4, "allow target=mail"),
            ("work", "vault", "q.Z", 0, NO_RULE),
        ],
    );
}

#[test]
fn rules_of_all_services_and_of_one_are_in_one_order() {
    check(
        "* * work mail deny\n\
         q.A * work @anyvm allow\n\
         * * work vault deny\n\
         q.A * vault @anyvm deny\n\
         * * @anyvm @anyvm allow\n",
        &[
            ("work", "mail", "q.A", 1, DENIED),
            ("work", "vault", "q.A", 2, "allow target=vault"),
            ("work", "vault", "q.B", 3, DENIED),
            ("vault", "mail", "q.A", 4, DENIED),
            ("vault", "mail", "q.B", 5, "allow target=mail"),
            ("mail", "vault", "q.A", 5, "allow target=vault"),
        ],
    );
}

#[test]
fn tokens_of_sources() {
    check(
        &format!(
            "q.Tag * @tag:office vault allow\n\
             q.Type * @type:StandaloneVM mail allow\n\
             q.Any * @anyvm vault allow\n\
             q.All * * vault allow\n\
             q.Uuid * uuid:{UUID} vault allow\n\
             q.Disp * @dispvm:office-dvm vault allow\n\
             q.DispTag * @dispvm:@tag:office-disposables vault allow\n\
             q.Admin * @adminvm vault allow\n\
             q.AdminType * @type:AdminVM vault allow\n"
        ),
        &[
            ("work", "vault", "q.Tag", 1, "allow target=vault"),
            ("net", "vault", "q.Tag", 0, NO_RULE),
            ("disp1", "vault", "q.Tag", 0, NO_RULE),
            ("vault", "mail", "q.Type", 2, "allow target=mail"),
            ("work", "mail", "q.Type", 0, NO_RULE),
            ("net", "vault", "q.Any", 3, "allow target=vault"),
            ("dom0", "vault", "q.Any", 0, NO_RULE),
            ("dom0", "vault", "q.All", 4, "allow target=vault"),
            ("mail", "vault", "q.Uuid", 5, "allow target=vault"),
            ("work", "vault", "q.Uuid", 0, NO_RULE),
            ("disp1", "vault", "q.Disp", 6, "allow target=vault"),
            ("office-dvm", "vault", "q.Disp", 0, NO_RULE),
            ("disp1", "vault", "q.DispTag", 7, "allow target=vault"),
            ("office-dvm", "vault", "q.DispTag", 0, NO_RULE),
            ("dom0", "vault", "q.Admin", 8, "allow target=vault"),
            ("work", "vault", "q.Admin", 0, NO_RULE),
            ("dom0", "vault", "q.AdminType", 0, NO_RULE),
        ],
    );
}

#[test]
fn tokens_of_targets() {
    let uuid = format!("uuid:{UUID}");
    check(
        &format!(
            "q.Tag * work @tag:secret allow\n\
             q.Type * work @type:StandaloneVM allow\n\
             q.Any * work @anyvm allow\n\
             q.All * work * allow\n\
             q.Uuid * work uuid:{UUID} allow\n\
             q.Admin * work dom0 allow\n\
             q.AdminType * work @type:AdminVM allow\n"
        ),
        &[
            ("work", "vault", "q.Tag", 1, "allow target=vault"),
            ("work", "mail", "q.Tag", 0, NO_RULE),
            ("work", "vault", "q.Type", 2, "allow target=vault"),
            ("work", "mail", "q.Type", 0, NO_RULE),
            ("work", "mail", "q.Any", 3, "allow target=mail"),
            ("work", "dom0", "q.Any", 0, NO_RULE),
            ("work", "@adminvm", "q.Any", 0, NO_RULE),
            ("work", "@default", "q.Any", 3, NO_TARGET),
            ("work", "dom0", "q.All", 4, "allow target=@adminvm"),
            ("work", "mail", "q.Uuid", 5, "allow target=mail"),
            ("work", &uuid, "q.Uuid", 5, "allow target=mail"),
            ("work", &uuid, "q.Any", 3, "allow target=mail"),
            ("work", "vault", "q.Uuid", 0, NO_RULE),
            ("work", "dom0", "q.Admin", 6, "allow target=@adminvm"),
            ("work", "$adminvm", "q.Admin", 6, "allow target=@adminvm"),
            ("work", "dom0", "q.AdminType", 0, NO_RULE),
        ],
    );
}

#[test]
fn a_target_that_does_not_exist_is_none() {
    check(
        "q.A * work nobody allow\n\
         q.A * work @default allow target=vault\n\
         q.A * work other:* allow\n\
         q.B * work @anyvm deny\n",
        &[
            ("work", "nobody", "q.A", 2, "allow target=vault"),
            ("work", "", "q.A", 2, "allow target=vault"),
            ("work", "vault:nothing", "q.A", 2, "allow target=vault"),
            ("work", "uuid:00000000-0000-0000-0000-000000000001", "q.A", 2, "allow target=vault"),
            // dom0's, which exists everywhere.
            ("work", "uuid:00000000-0000-0000-0000-000000000000", "q.A", 0, NO_RULE),
            ("work", "nobody", "q.B", 4, DENIED),
        ],
    );
}

/// DispVMTemplate.verify in the original: a disposable of what is no template is no target at all, not even @default.
#[test]
fn a_disposable_of_no_template_is_denied() {
    let denied =
        |base: &str| format!("deny: @dispvm:{base} does not exist, or is no template of disposable qubes");
    check(
        "q.A * work @default allow target=vault\n\
         q.A * work * allow\n",
        &[
            ("work", "@dispvm:vault", "q.A", 0, &denied("vault")),
            ("work", "@dispvm:nobody", "q.A", 0, &denied("nobody")),
            ("work", "@dispvm:other-dvm", "q.A", 2, "allow target=@dispvm:other-dvm"),
        ],
    );
}

/// DispVMTemplate.match in the original compares `@dispvm` by the name of the caller's kind, and DispVMTag.match asks
/// whether that is a template, too.
#[test]
fn a_callers_kind_of_disposable_is_matched_by_name() {
    let mut system = system();
    let dvm = system.qubes.get_mut("office-dvm").expect("a fixture");
    dvm.template_for_dispvms = false;
    let policy = policy(
        "q.Name * work @dispvm:office-dvm deny\n\
         q.Tag * work @dispvm:@tag:office-disposables deny\n\
         * * work @dispvm allow target=vault\n",
    );
    let line = |service| policy.decide(&call("work", "@dispvm", service), &system).rule.map(|rule| rule.line);
    assert_eq!(line("q.Name"), Some(1));
    assert_eq!(line("q.Tag"), Some(3));
}

#[test]
fn new_disposables() {
    check(
        "q.Own * @anyvm @dispvm allow\n\
         q.One * @anyvm @dispvm:office-dvm allow\n\
         q.Tag * @anyvm @dispvm:@tag:office-disposables allow\n\
         q.Redirect * @anyvm @dispvm allow target=@dispvm:other-dvm\n\
         q.Any * @anyvm @anyvm allow\n\
         q.Qube * @anyvm office-dvm allow\n\
         q.QubeTag * @anyvm @tag:office-disposables allow\n\
         q.To * @anyvm @default allow target=@dispvm\n\
         q.NoStart * @anyvm @dispvm allow autostart=no\n",
        &[
            // work's own kind is office-dvm; mail has none.
            ("work", "@dispvm", "q.Own", 1, "allow target=@dispvm:office-dvm"),
            (
                "mail",
                "@dispvm",
                "q.Own",
                1,
                "deny: @dispvm does not exist, or is no template of disposable qubes",
            ),
            ("work", "@dispvm:office-dvm", "q.Own", 0, NO_RULE),
            ("work", "@dispvm:office-dvm", "q.One", 2, "allow target=@dispvm:office-dvm"),
            ("work", "@dispvm", "q.One", 2, "allow target=@dispvm:office-dvm"),
            ("mail", "@dispvm", "q.One", 0, NO_RULE),
            ("work", "@dispvm:other-dvm", "q.One", 0, NO_RULE),
            ("work", "office-dvm", "q.One", 0, NO_RULE),
            // An existing disposable is no new one.
            ("work", "disp1", "q.One", 0, NO_RULE),
            ("mail", "@dispvm:office-dvm", "q.Tag", 3, "allow target=@dispvm:office-dvm"),
            ("work", "@dispvm", "q.Tag", 3, "allow target=@dispvm:office-dvm"),
            ("work", "@dispvm:other-dvm", "q.Tag", 0, NO_RULE),
            ("mail", "@dispvm", "q.Redirect", 4, "allow target=@dispvm:other-dvm"),
            ("work", "@dispvm:other-dvm", "q.Any", 5, "allow target=@dispvm:other-dvm"),
            ("work", "@dispvm:other-dvm", "q.Qube", 0, NO_RULE),
            ("work", "@dispvm:office-dvm", "q.QubeTag", 0, NO_RULE),
            ("work", "", "q.To", 8, "allow target=@dispvm:office-dvm"),
            (
                "work",
                "@dispvm",
                "q.NoStart",
                9,
                "deny: @dispvm:office-dvm does not run, and the rule has autostart=no",
            ),
        ],
    );
}

#[test]
fn a_redirection_goes_where_no_rule_would_let_it() {
    check(
        "q.A * work @anyvm allow target=vault\n\
         q.A * * vault deny\n\
         q.B * work @anyvm allow target=nobody\n\
         q.C * work @anyvm allow target=work\n\
         q.D * work mail allow target=dom0\n\
         q.E * work mail allow target=net autostart=no\n\
         q.F * work mail allow target=net\n",
        &[
            ("work", "mail", "q.A", 1, "allow target=vault"),
            ("work", "", "q.A", 1, "allow target=vault"),
            ("work", "mail", "q.B", 3, "deny: nobody does not exist, or is no template of disposable qubes"),
            (
                "work",
                "mail",
                "q.C",
                4,
                "deny: work is in the caller's own qube: such calls are its agent's, not dom0's",
            ),
            ("work", "mail", "q.D", 5, "allow target=@adminvm"),
            ("work", "mail", "q.E", 6, "deny: net does not run, and the rule has autostart=no"),
            ("work", "mail", "q.F", 7, "allow target=net"),
        ],
    );
}

#[test]
fn a_policy_for_qubes_grants_containers_nothing() {
    let text = "q.A * work vault allow\n\
                q.A * @tag:office * allow\n\
                q.A * @type:AppVM * allow\n\
                q.A * @anyvm @anyvm ask\n\
                * * * * allow\n\
                * * * @default allow target=vault\n";
    check(
        text,
        &[
            ("work:mail", "vault", "q.A", 0, NO_RULE),
            ("work:mail", "vault:gpg", "q.A", 0, NO_RULE),
            ("work:mail", "", "q.A", 0, NO_RULE),
            ("work:mail", "dom0", "q.A", 0, NO_RULE),
            ("work:mail", "@dispvm", "q.A", 0, NO_RULE),
            ("work", "vault:gpg", "q.A", 0, NO_RULE),
            ("dom0", "vault:gpg", "q.A", 0, NO_RULE),
        ],
    );
    // Nor is one of them among the targets that somebody could choose.
    let Verdict::Ask(question) = decide(&policy("q.A * * * ask"), "work", "vault", "q.A").verdict else {
        panic!("not asked")
    };
    assert!(question.targets.iter().all(|target| !matches!(target, Place::Container { .. })));
}

#[test]
fn containers_are_principals_of_their_own() {
    check(
        "q.Sign * work:mail vault:gpg allow\n\
         q.Log * work:* vault allow user=log\n\
         q.Get * work vault:* allow\n\
         q.To * work:web @default allow target=vault:gpg\n\
         q.Out * work:web @anyvm allow\n\
         q.In * work:web work:db allow\n",
        &[
            ("work:mail", "vault:gpg", "q.Sign", 1, "allow target=vault:gpg"),
            ("work:web", "vault:gpg", "q.Sign", 0, NO_RULE),
            ("work", "vault:gpg", "q.Sign", 0, NO_RULE),
            ("work:mail", "vault", "q.Sign", 0, NO_RULE),
            ("work:web", "vault", "q.Log", 2, "allow target=vault user=log"),
            ("work", "vault", "q.Log", 0, NO_RULE),
            ("vault:gpg", "mail", "q.Log", 0, NO_RULE),
            ("work", "vault:gpg", "q.Get", 3, "allow target=vault:gpg"),
            ("work", "vault", "q.Get", 0, NO_RULE),
            ("work:web", "", "q.To", 4, "allow target=vault:gpg"),
            ("work:web", "mail", "q.Out", 5, "allow target=mail"),
            ("work:web", "dom0", "q.Out", 0, NO_RULE),
            ("work:web", "vault:gpg", "q.Out", 0, NO_RULE),
            ("work:web", "@dispvm", "q.Out", 5, "allow target=@dispvm:office-dvm"),
            // Within one qube the agent decides, not dom0.
            (
                "work:web",
                "work:db",
                "q.In",
                6,
                "deny: work:db is in the caller's own qube: such calls are its agent's, not dom0's",
            ),
        ],
    );
}

/// What becomes of calls by a policy, as it is shown.
fn verdicts<'a>(policy: &'a Policy, system: &'a System) -> impl Fn(&str, &str, &str) -> String + 'a {
    |source, target, service| policy.decide(&call(source, target, service), system).verdict.to_string()
}

#[test]
fn a_qubes_own_policy_is_for_calls_within_it() {
    let policy = policy(
        "q.In * work:web work:db allow\n\
         q.In * work:* work allow\n\
         q.Out * work:web vault allow\n\
         q.Ask * work:web @anyvm ask\n",
    );
    let system = System { within: Some(nexus::name::Name::new("work").unwrap()), ..system() };
    let verdict = verdicts(&policy, &system);
    assert_eq!(verdict("work:web", "work:db", "q.In"), "allow target=work:db");
    assert_eq!(verdict("work:mail", "work", "q.In"), "allow target=work");
    assert_eq!(verdict("work:mail", "work:db", "q.In"), NO_RULE);
    assert_eq!(
        verdict("work:web", "vault", "q.Out"),
        "deny: vault is not in this qube: such calls are dom0's"
    );
    assert_eq!(verdict("work:web", "work", "q.Ask"), "ask targets=work");
}

/// dom0 with containers, as `nxl apply` writes it down.
fn with_dom0s_containers() -> System {
    let mut system = system();
    let containers = ["update", "backup"].map(|name| nexus::name::Name::new(name).expect("a name")).into();
    let info = nexus::policy::QubeInfo { containers, ..nexus::policy::QubeInfo::app_vm() };
    system.qubes.insert(nexus::name::Name::new("dom0").expect("a name"), info);
    system
}

#[test]
fn dom0s_containers_are_principals_and_nothing_of_what_dom0_may_do_is_theirs() {
    let policy = policy(
        "q.Get * dom0:update vault allow\n\
         q.Put * work:mail dom0:* allow autostart=no\n\
         q.Ask * work dom0:backup ask default_target=dom0:backup\n\
         q.Near * dom0:update dom0:backup allow\n\
         q.Near * dom0:update dom0 allow\n\
         q.Near * dom0 dom0:* allow\n\
         * * dom0 * allow\n\
         * * @anyvm * allow\n",
    );
    let system = with_dom0s_containers();
    let verdict = verdicts(&policy, &system);
    assert_eq!(verdict("dom0:update", "vault", "q.Get"), "allow target=vault");
    for (source, target) in [("dom0:backup", "vault"), ("dom0:update", "work"), ("dom0:update", "@dispvm")] {
        assert_eq!(verdict(source, target, "q.Get"), NO_RULE, "{source} {target}");
    }
    // dom0 always runs, whatever is said of what does.
    assert_eq!(verdict("work:mail", "dom0:update", "q.Put"), "allow target=dom0:update autostart=no");
    assert_eq!(verdict("work", "dom0:update", "q.Put"), NO_RULE);
    let asked = verdict("work", "dom0:backup", "q.Ask");
    assert!(asked.contains(",dom0:backup,") && asked.ends_with(" default_target=dom0:backup"), "{asked}");
    // One that there is not is no target, and no caller.
    assert_eq!(verdict("work:mail", "dom0:other", "q.Put"), NO_RULE);
    assert_eq!(verdict("dom0:other", "vault", "q.Get"), "deny: the caller dom0:other is not known");
    // What stays within dom0, its agent decides.
    let own = |target| {
        format!("deny: {target} is in the caller's own qube: such calls are its agent's, not dom0's")
    };
    assert_eq!(verdict("dom0:update", "dom0:backup", "q.Near"), own("dom0:backup"));
    assert_eq!(verdict("dom0:update", "dom0", "q.Near"), own("@adminvm"));
    assert_eq!(verdict("dom0", "dom0:backup", "q.Near"), own("dom0:backup"));
    let within = System { within: Some(nexus::name::Name::new("dom0").unwrap()), ..system.clone() };
    let verdict = verdicts(&policy, &within);
    assert_eq!(verdict("dom0:update", "dom0:backup", "q.Near"), "allow target=dom0:backup");
    assert_eq!(verdict("dom0:update", "dom0", "q.Near"), "allow target=@adminvm");
    assert_eq!(verdict("dom0", "dom0:backup", "q.Near"), "allow target=dom0:backup");
    assert_eq!(verdict("dom0:backup", "dom0:update", "q.Near"), NO_RULE);
    assert_eq!(
        verdict("dom0:update", "vault", "q.Get"),
        "deny: vault is not in this qube: such calls are dom0's"
    );
    // They are among those whom a graph shows; dom0 itself is not among the callers.
    let edges: Vec<String> =
        policy.edges(&system).iter().map(|edge| format!("{} {}", edge.source, edge.target)).collect();
    assert!(
        edges.contains(&"dom0:update vault".to_owned())
            && edges.contains(&"work:mail dom0:update".to_owned())
    );
    assert!(!edges.iter().any(|edge| edge.starts_with("dom0 ")), "{edges:?}");
}

#[test]
fn who_is_not_known_calls_nobody() {
    let policy = policy("* * * * allow\nq.A * nobody vault allow\nq.A * work:* vault allow\n");
    for source in ["nobody", "work:nothing", "nobody:mail"] {
        let decision = decide(&policy, source, "vault", "q.A");
        assert!(matches!(decision.verdict, Verdict::Deny(Denial::UnknownCaller(_))), "{source}");
        assert_eq!(decision.rule, None);
    }
}

fn targets(policy: &Policy, source: &str, target: &str) -> (Vec<String>, Option<String>) {
    match decide(policy, source, target, "q.A").verdict {
        Verdict::Ask(question) => (
            question.targets.iter().map(ToString::to_string).collect(),
            question.proposed.map(|place| place.to_string()),
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn a_question_offers_what_policy_would_not_deny() {
    // The documentation's example: an allowed archive, and office qubes on demand.
    let example = policy(
        "q.A * vault mail allow\n\
         q.A * vault @tag:office ask default_target=work\n\
         q.A * vault @default ask default_target=work\n",
    );
    let offered = (vec!["mail".to_owned(), "work".to_owned()], Some("work".to_owned()));
    assert_eq!(targets(&example, "vault", "work"), offered);
    assert_eq!(targets(&example, "vault", ""), offered);
    assert_eq!(verdict(&example, "vault", "mail", "q.A"), (1, "allow target=mail".into()));

    // Never the caller itself, nothing that is denied, nothing that is redirected elsewhere but where to.
    let all = policy(
        "q.A * @anyvm mail deny\n\
         q.A * @anyvm net allow target=vault:gpg\n\
         q.A * @anyvm debian deny\n\
         q.A * @anyvm @anyvm ask default_target=mail\n",
    );
    let (offered, proposed) = targets(&all, "work", "vault");
    assert_eq!(
        offered.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        ["vault", "vault:gpg", "office-dvm", "other-dvm", "disp1", "@dispvm:office-dvm", "@dispvm:other-dvm"]
            .into()
    );
    // mail is denied, and so is not proposed.
    assert_eq!(proposed, None);

    // autostart=no: only what runs.
    let running = policy("q.A * work @type:AppVM ask autostart=no\nq.A * work vault ask\n");
    assert_eq!(targets(&running, "work", "mail").0, ["mail", "vault"]);
}

#[test]
fn a_question_with_a_target_offers_only_that() {
    let policy = policy(
        "q.A * work @anyvm ask target=vault default_target=mail user=u\n\
         q.A * mail @anyvm ask target=nobody\n\
         q.A * vault @tag:nothing ask\n\
         q.A * vault @default ask\n",
    );
    assert_eq!(targets(&policy, "work", "mail"), (vec!["vault".into()], Some("vault".into())));
    assert_eq!(
        decide(&policy, "mail", "work", "q.A").verdict,
        Verdict::Deny(Denial::NoSuchTarget(Place::redirect("nobody").unwrap()))
    );
    assert_eq!(decide(&policy, "vault", "", "q.A").verdict, Verdict::Deny(Denial::NothingToAsk));
}

#[test]
fn only_what_was_offered_can_be_chosen() {
    let policy = policy("q.A * work @tag:secret ask user=u autostart=no\n");
    let asked = decide(&policy, "work", "vault", "q.A");
    let vault = Place::redirect("vault").unwrap();
    let mail = Place::redirect("mail").unwrap();
    assert_eq!(
        asked.clone().answered(Some(&vault)).verdict.to_string(),
        "allow target=vault user=u autostart=no"
    );
    assert_eq!(asked.clone().answered(Some(&mail)).verdict, Verdict::Deny(Denial::Refused));
    assert_eq!(asked.answered(None).verdict, Verdict::Deny(Denial::Refused));
    // What is denied is not allowed by an answer.
    let denied = decide(&policy, "mail", "vault", "q.A");
    assert_eq!(denied.clone().answered(Some(&vault)), denied);
}

#[test]
fn who_is_told() {
    let policy = policy(
        "q.A * work vault allow\n\
         q.A * work mail allow notify=yes\n\
         q.A * work net deny\n\
         q.A * work disp1 deny notify=no\n\
         q.A * mail vault ask notify=yes\n",
    );
    let notify = |source, target| decide(&policy, source, target, "q.A").notify;
    assert!(!notify("work", "vault"));
    assert!(notify("work", "mail"));
    assert!(notify("work", "net"));
    assert!(!notify("work", "disp1"));
    assert!(notify("mail", "vault"));
    assert!(notify("vault", "mail"), "no rule");
}

#[test]
fn an_explanation_says_why_the_others_did_not_match() {
    let policy = policy(
        "q.B * * * deny\n\
         q.A +x work vault deny\n\
         q.A * @tag:secret vault deny\n\
         q.A * work:mail vault deny\n\
         q.A * * @dispvm deny\n\
         q.A * work dom0 deny\n\
         q.A * @type:AppVM vault allow\n\
         q.A * * * deny\n",
    );
    let explained = policy.explain(&call("work", "vault", "q.A"), &system());
    assert_eq!(
        explained.to_string(),
        "work calls q.A+ in vault\n\
         \x20 t.policy:2: q.A +x work vault deny\n\
         \x20     no: the argument is +, not +x\n\
         \x20 t.policy:3: q.A * @tag:secret vault deny\n\
         \x20     no: work has no tag secret\n\
         \x20 t.policy:4: q.A * work:mail vault deny\n\
         \x20     no: work is not work:mail\n\
         \x20 t.policy:5: q.A * * @dispvm deny\n\
         \x20     no: vault is not @dispvm\n\
         \x20 t.policy:6: q.A * work @adminvm deny\n\
         \x20     no: vault is not @adminvm\n\
         \x20 (1 of other services)\n\
         \x20 t.policy:7: q.A * @type:AppVM vault allow\n\
         \x20     matches\n\
         allow target=vault\n"
    );
    let explained = policy.explain(&call("work:web", "nobody", "q.A"), &system());
    let why: Vec<_> = explained.passed.iter().map(|passed| passed.why.as_str()).collect();
    assert_eq!(
        why,
        [
            "the argument is +, not +x",
            "work:web is a container, and @tag:secret is for qubes",
            "work:web is not work:mail",
            "work:web is a container, and * is for qubes",
            "work:web is a container, and work is for qubes",
            "work:web is a container, and @type:AppVM is for qubes",
            "work:web is a container, and * is for qubes",
        ]
    );
    assert_eq!(explained.unknown_target, Place::intended("nobody").unwrap());
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["decision"]["verdict"], "deny");
    assert_eq!(json["passed"][0]["column"], "argument");
    assert_eq!(json["unknown_target"], "nobody");
}

#[test]
fn a_graph_has_an_edge_for_every_call_that_is_not_denied() {
    let policy = policy(
        "q.A +x work vault allow\n\
         q.A +y work @anyvm allow target=vault\n\
         q.Sign * work:mail vault:gpg ask\n\
         * * @tag:secret mail allow\n\
         q.A +x vault mail allow\n",
    );
    let edges: Vec<_> = policy
        .edges(&system())
        .into_iter()
        .map(|edge| {
            format!(
                "{} {} {} {}",
                edge.source,
                edge.target,
                if edge.ask { "ask" } else { "allow" },
                edge.service
            )
        })
        .collect();
    assert_eq!(
        edges,
        [
            "vault mail allow *",
            "vault mail allow q.A",
            "vault mail allow q.Sign",
            "work vault allow q.A+x",
            "work vault allow q.A+y",
            "work:mail vault:gpg ask q.Sign",
        ]
    );
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a fixture")).expect("a fixture");
        fs::write(path, text).expect("a fixture");
    }
}

/// Folders `run`, `etc` and `older` in a temporary one.
fn folders(files: &[(&str, &str)]) -> (tempfile::TempDir, PolicyFolders) {
    let root = tempfile::tempdir().expect("a fixture");
    for folder in ["run", "etc", "older"] {
        fs::create_dir(root.path().join(folder)).expect("a fixture");
    }
    write(root.path(), files);
    let folders = PolicyFolders {
        folders: vec![root.path().join("run"), root.path().join("etc")],
        older: root.path().join("older"),
    };
    (root, folders)
}

/// The rules as they are read, and the file of each without the folders before it.
fn read(files: &[(&str, &str)]) -> Result<Vec<String>, Vec<String>> {
    let (root, folders) = folders(files);
    let short = |text: String| text.replace(&format!("{}/", root.path().display()), "");
    match folders.read().policy {
        Ok(policy) => {
            Ok(policy.rules().iter().map(|rule| short(format!("{}: {rule}", rule.origin))).collect())
        }
        Err(errors) => Err(errors.iter().map(|error| short(error.to_string())).collect()),
    }
}

#[test]
fn files_are_read_by_name_and_run_before_etc() {
    let rule = "* * a b deny\n";
    assert_eq!(
        read(&[
            ("etc/50-b.policy", rule),
            ("etc/30-a.policy", rule),
            ("etc/30_a.policy", rule),
            ("etc/3.policy", rule),
            ("run/50-b.policy", rule),
            ("run/90-z.policy", rule),
            ("etc/README", "nothing"),
            ("etc/.hidden.policy", "nothing"),
            ("etc/30-a.policy.rpmnew", "nothing"),
            ("etc/30-a.policy~", "nothing"),
            ("etc/include/x.policy", "nothing"),
        ])
        .unwrap(),
        [
            "etc/3.policy:1: * * a b deny",
            "etc/30-a.policy:1: * * a b deny",
            "etc/30_a.policy:1: * * a b deny",
            "run/50-b.policy:1: * * a b deny",
            "etc/50-b.policy:1: * * a b deny",
            "run/90-z.policy:1: * * a b deny",
        ]
    );
}

#[test]
fn one_wrong_file_is_a_wrong_policy() {
    let good = ("etc/30-a.policy", "* * a b deny\n");
    for (name, text, expected) in [
        (
            "etc/50-B.policy",
            "",
            "etc/50-B.policy: a policy's file name has lower-case letters, digits, '_', '.' and '-' only; rename or remove it",
        ),
        (
            "etc/50 b.policy",
            "",
            "etc/50 b.policy: a policy's file name has lower-case letters, digits, '_', '.' and '-' only; rename or remove it",
        ),
        (
            "etc/50-b.policy",
            "* * a b dney",
            "etc/50-b.policy:1:9: \"dney\" is no action; those are allow, deny and ask",
        ),
        (
            "etc/50-b.policy",
            "!include gone",
            "etc/50-b.policy:1:10: etc/gone: No such file or directory (os error 2)",
        ),
        ("etc/50-b.policy", "!include .", "etc/50-b.policy:1:10: etc/.: not a file"),
        ("etc/50-b.policy", "!include-dir gone", "etc/gone: No such file or directory (os error 2)"),
        ("etc/50-b.policy/x", "", "etc/50-b.policy: not a file"),
    ] {
        assert_eq!(read(&[good, (name, text)]), Err(vec![expected.to_owned()]), "{name}: {text}");
    }
    let (root, folders) = folders(&[good]);
    fs::write(root.path().join("etc/40.policy"), b"* * a \xff deny").unwrap();
    let errors = folders.read().policy.unwrap_err();
    assert!(errors[0].to_string().ends_with("40.policy: not UTF-8 from byte 6 on"), "{}", errors[0]);
    std::os::unix::fs::symlink("gone", root.path().join("etc/40-gone.policy")).unwrap();
    assert_eq!(folders.read().policy.unwrap_err().len(), 2);
    // Nobody writes to it, and it is not waited for.
    let fifo = root.path().join("etc/40-fifo.policy");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let errors = folders.read().policy.unwrap_err();
    assert!(errors.iter().any(|error| error.to_string().ends_with("40-fifo.policy: not a file")));
}

#[test]
fn files_are_included_in_their_place() {
    assert_eq!(
        read(&[
            (
                "etc/30-a.policy",
                "* * a one deny\n!include include/more\n!include-dir include/dir\n* * a last deny\n"
            ),
            ("etc/include/more", "* * a two deny\n!include-service q.S +x include/service\n"),
            ("etc/include/service", "a three allow\n!include lines\n!include include/lines\n"),
            ("etc/include/lines", "b @dispvm deny\n"),
            ("older/lines", "a @dispvm deny\n"),
            ("etc/include/dir/2.policy", "* * a five deny\n"),
            ("etc/include/dir/1.policy", "* * a four deny\n"),
            ("etc/include/dir/skipped", "nothing"),
            ("run/40.policy", "!include include/more\n"),
        ])
        .unwrap(),
        [
            "etc/30-a.policy:1: * * a one deny",
            "etc/include/more:1: * * a two deny",
            "etc/include/service:1: q.S +x a three allow",
            "older/lines:1: q.S +x a @dispvm deny",
            "etc/include/lines:1: q.S +x b @dispvm deny",
            "etc/include/dir/1.policy:1: * * a four deny",
            "etc/include/dir/2.policy:1: * * a five deny",
            "etc/30-a.policy:4: * * a last deny",
            "etc/include/more:1: * * a two deny",
            "etc/include/service:1: q.S +x a three allow",
            "older/lines:1: q.S +x a @dispvm deny",
            "etc/include/lines:1: q.S +x b @dispvm deny",
        ]
    );
}

#[test]
fn an_empty_folder_is_a_warning() {
    let (root, folders) = folders(&[("etc/1.policy", "!include-dir empty\n"), ("etc/empty/readme", "")]);
    let reading = folders.read();
    assert!(reading.policy.unwrap().rules().is_empty());
    assert_eq!(
        reading.warnings,
        [format!("{0}/etc/1.policy:1:14: {0}/etc/empty has no .policy files", root.path().display())]
    );
}

#[test]
fn files_that_include_one_another_come_to_an_end() {
    let errors = read(&[
        ("etc/1.policy", "!include b\n!include b\n!include b\n"),
        ("etc/b", "!include c\n!include c\n"),
        ("etc/c", "!include b\n!include b\n"),
    ])
    .unwrap_err();
    assert!(!errors.is_empty() && errors.len() <= 200, "{}", errors.len());
    assert_eq!(errors[0], "etc/c:1:10: 32 files include one another: is one of them its own?");
}

#[test]
fn the_older_format_comes_in_with_the_denials_that_it_implied() {
    let read = read(&[
        ("etc/30.policy", "q.A * a b deny\n"),
        ("etc/35-compat.policy", "!compat-4.0\n"),
        ("etc/90.policy", "q.A * * * ask\n"),
        ("older/q.A", "$anyvm $dispvm allow\n$include:include/more\n"),
        ("older/q.A+x", "# x\na b allow,user=u\n"),
        ("older/q.B", "a b ask\n"),
        ("older/include/more", "$tag:t dom0 deny\n"),
        ("older/q.A~", "nothing"),
        ("older/.q.C", "nothing"),
    ])
    .unwrap();
    assert_eq!(
        read,
        [
            "etc/30.policy:1: q.A * a b deny",
            "older/q.A+x:2: q.A +x a b allow user=u",
            "older/q.A+x:3: q.A +x * * deny",
            "older/q.A:1: q.A * @anyvm @dispvm allow",
            "older/include/more:1: q.A * @tag:t @adminvm deny",
            "older/q.B:1: q.B * a b ask",
            "etc/90.policy:1: q.A * * * ask",
        ]
    );
}

#[test]
fn without_folders_there_are_no_rules() {
    let root = tempfile::tempdir().unwrap();
    let reading = PolicyFolders::of([root.path().join("gone")]).read();
    assert!(reading.policy.unwrap().rules().is_empty());
}

/// Rules of other services cost nothing, and a rule is compared once.
#[test]
fn only_rules_of_the_service_are_compared() {
    let mut text = String::new();
    for service in 0..100 {
        for target in 0..10 {
            text += &format!("q.S{service} * work t{target} deny\n");
        }
    }
    text += "* * work vault allow\n* * work mail allow\n";
    let policy = policy(&text);
    assert_eq!(decide(&policy, "work", "vault", "q.S50").compared, 11);
    assert_eq!(decide(&policy, "work", "mail", "q.Other").compared, 2);
    assert_eq!(decide(&policy, "mail", "work", "q.S99").compared, 12);
}
