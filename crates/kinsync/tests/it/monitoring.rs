//! deploy/prometheus/alerts.yml, deploy/grafana/kinsync.json and docs/guides/operate.md, compared with the running binary.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use kinde_emulator::OrganizationEdit;
use kinsync::{
    health::Code,
    metrics::{Kind, METRICS, labels::LABELS},
};
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    deployment::{DEADLINE, Deployment, named},
    server::Server,
};

const GUIDE: &str = "docs/guides/operate.md";
/// Labels that Prometheus adds.
const OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];

fn file(path: &str) -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// An exported series.
#[derive(Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

fn parse(page: &str) -> Vec<Series> {
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| series(line.rsplit_once(' ').unwrap().0)).collect()
}

/// The value of a label may contain braces, as the pattern of a route does.
fn series(text: &str) -> Series {
    let (name, labels) = text.split_once('{').unwrap_or((text, ""));
    let labels = labels.trim_end_matches('}').trim_end_matches('"').split("\",");
    let labels = labels.filter_map(|one| one.split_once("=\""));
    Series { name: name.into(), labels: labels.map(|(name, value)| (name.into(), value.into())).collect() }
}

/// A histogram has three names.
fn is_of(series: &str, metric: &str) -> bool {
    series.strip_prefix(metric).is_some_and(|suffix| ["", "_bucket", "_sum", "_count"].contains(&suffix))
}

/// A metric in an expression, with its matchers: label, operator, value.
type Selector<'a> = (&'a str, Vec<(&'a str, &'a str, &'a str)>);

/// The metrics of kinsync in a `PromQL` expression.
fn selectors(expression: &str) -> Vec<Selector<'_>> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for prefix in ["kinsync_", "kinde_", "process_"] {
        for (start, _) in expression.match_indices(prefix) {
            let rest = &expression[start..];
            let (name, rest) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
            if expression[..start].ends_with(is_name) {
                continue;
            }
            let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let matchers = matchers.map_or("", |(inside, _)| inside).split("\",").filter_map(matcher);
            found.push((name, matchers.collect()));
        }
    }
    found
}

fn matcher(text: &str) -> Option<(&str, &str, &str)> {
    let (left, value) = text.trim_end_matches('"').split_once('"')?;
    let at = left.find(['=', '!'])?;
    Some((&left[..at], &left[at..], value))
}

/// The labels in `by (…)`.
fn groupings(expression: &str) -> Vec<&str> {
    let lists = expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
    lists.flat_map(|list| list.split(',')).map(str::trim).collect()
}

/// What is wrong with an expression: names and values without a series.
fn wrong(expression: &str, exported: &[Series]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut labels: BTreeSet<&str> = OF_PROMETHEUS.into();
    for (name, matchers) in selectors(expression) {
        let series: Vec<&Series> = exported.iter().filter(|one| one.name == name).collect();
        if series.is_empty() {
            wrong.push(format!("no series of {name}"));
        }
        labels.extend(series.iter().flat_map(|one| one.labels.keys()).map(String::as_str));
        for (label, _, value) in matchers {
            let has =
                |value: &str| series.iter().any(|one| one.labels.get(label).is_some_and(|l| l == value));
            let values = value.split('|').filter(|value| !value.starts_with('$'));
            let missing = values.filter(|value| !OF_PROMETHEUS.contains(&label) && !has(value));
            wrong.extend(missing.map(|value| format!("no series of {name} with {label}=\"{value}\"")));
        }
    }
    let unknown = groupings(expression).into_iter().filter(|label| !labels.contains(label));
    wrong.extend(unknown.map(|label| format!("no label {label} in {expression}")));
    wrong
}

/// The alerts: name and text.
fn alerts(rules: &str) -> BTreeMap<&str, &str> {
    rules.split("- alert: ").skip(1).map(|block| block.split_once('\n').unwrap()).collect()
}

/// The expressions of the panels and the variables.
fn expressions<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_str().filter(|_| ["expr", "definition"].contains(&&**name)) {
                    Some(text) => found.push(text),
                    None => expressions(member, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

/// What a process exports that has processed an event, answered a request and completed a scan with roles.
async fn exported() -> Vec<Series> {
    let mut deployment = Deployment::comparing_roles().await;
    let acme = OrganizationEdit {
        code: Some("org_acme".into()),
        name: Some("Acme".into()),
        ..OrganizationEdit::default()
    };
    deployment.kinde.create_organization(acme).unwrap();
    let user = deployment.kinde.create_user(named(1)).unwrap().id;
    deployment.converged().await;
    let app = &deployment.apps[0];
    let me = app.client().get(app.url("/api/me")).bearer_auth(deployment.token(&user)).send();
    assert_eq!(me.await.unwrap().status(), 200);
    deployment.admin(Method::POST, "/api/admin/reconcile").await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let page = app.client().get(app.url("/metrics")).send().await.unwrap().text().await.unwrap();
        if page.contains("kinsync_memberships_in_drift") {
            return parse(&page);
        }
        assert!(Instant::now() < deadline, "no scan completes: {page}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_and_label_of_the_alerts_and_the_dashboard_exists() {
    let exported = exported().await;
    let (rules, dashboard) = (file("deploy/prometheus/alerts.yml"), file("deploy/grafana/kinsync.json"));
    let alerts = alerts(&rules);
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut panels = Vec::new();
    expressions(&dashboard, &mut panels);
    assert!(alerts.len() > 20 && panels.len() > 50, "{} {}", alerts.len(), panels.len());
    let rules = alerts.values().map(|text| text.split("labels:").next().unwrap());
    let found: Vec<String> = rules.chain(panels).flat_map(|text| wrong(text, &exported)).collect();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_fresh_process_exports_every_counter_that_an_alert_compares() {
    let server = Server::start(&[]);
    let exported = parse(&server.request("GET", "/metrics", &[], "").1);
    let rules = file("deploy/prometheus/alerts.yml");
    let is_counter = |name: &str| METRICS.iter().any(|one| one.name == name && one.kind == Kind::Counter);
    for (alert, text) in alerts(&rules) {
        let expression = text.split("labels:").next().unwrap();
        if selectors(expression).iter().any(|(name, _)| is_counter(name)) && !alert.contains("Requests") {
            assert_eq!(wrong(expression, &exported), Vec::<String>::new(), "{alert}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_exported_label_is_in_the_list_of_labels() {
    for Series { name, labels } in exported().await {
        let metric = METRICS.iter().find(|metric| is_of(&name, metric.name)).expect(&name).name;
        for (label, value) in labels.iter().filter(|(label, _)| *label != "le") {
            let known = LABELS.iter().find(|one| metric == one.metric && one.name == label);
            let values = known.unwrap_or_else(|| panic!("{metric} has a label {label}")).values;
            let is_listed = values.iter().any(|list| list.contains(&value.as_str()));
            assert!(values.is_empty() || is_listed, "{metric}: {label}=\"{value}\"");
        }
    }
}

#[test]
fn every_alert_and_every_problem_of_health_has_its_section_in_the_guide() {
    let guide = file(GUIDE);
    let sections: BTreeSet<&str> =
        guide.lines().filter_map(|line| line.strip_prefix("### ")).map(str::trim).collect();
    let mut used: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    let rules = file("deploy/prometheus/alerts.yml");
    for (alert, text) in alerts(&rules) {
        let link = text.split("runbook_url: ").nth(1).unwrap().lines().next().unwrap();
        let section = link.strip_prefix(GUIDE).and_then(|rest| rest.strip_prefix('#'));
        let section = section.unwrap_or_else(|| panic!("{alert} links to {link}"));
        if section != "{{ $labels.code }}" {
            used.insert(section);
        }
    }
    assert_eq!(used.difference(&sections).collect::<Vec<_>>(), Vec::<&&str>::new(), "without a section");
    assert_eq!(
        sections.difference(&used).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "without an alert or a problem"
    );
    for section in sections {
        assert!(guide.contains(&format!("](#{section})")), "{section} is not in the table of contents");
    }
}
