//! What Kubernetes' own suite (`e2e.test`) said of a cluster: read from its JUnit reports, written as the page
//! `docs/conformance.md`. `deploy/conformance` runs the suite and then this.
//!
//! A run may be cut in parts, each with a report of its own that calls all other tests skipped: of several reports, a
//! test's last result counts.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};
use quick_xml::Reader;
use quick_xml::escape::{resolve_xml_entity, unescape};
use quick_xml::events::{BytesRef, BytesStart, Event};

/// A test is part of conformance if its name has this.
const MARK: &str = "[Conformance]";
/// How much of a failure's text the page shows.
const REASON: usize = 240;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// With the text that the suite gives as its reason.
    Failed(String),
    /// Not asked for, or the suite found the cluster unfit for it.
    #[default]
    NotRun,
}

/// The last result of each conformance test, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results(BTreeMap<String, Outcome>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    not_run: usize,
}

/// A `testcase` while it is read.
#[derive(Default)]
struct Case {
    name: String,
    outcome: Option<Outcome>,
    /// Inside `failure` or `error`, whose text is the reason.
    reading: bool,
}

impl Case {
    fn new(element: &BytesStart<'_>) -> Result<Case> {
        let status = attribute(element, "status")?;
        let outcome = match status.as_deref() {
            None => None,
            Some("passed") => Some(Outcome::Passed),
            Some("skipped" | "pending") => Some(Outcome::NotRun),
            // Failed, panicked, timedout, interrupted, aborted.
            Some(_) => Some(Outcome::Failed(String::new())),
        };
        Ok(Case {
            name: attribute(element, "name")?.context("a testcase without a name")?,
            outcome,
            reading: false,
        })
    }

    /// The plain format has no `status`: a case that did not fail and was not skipped has passed.
    fn finish(self) -> (String, Outcome) {
        let name = self.name.strip_prefix("[It] ").unwrap_or(&self.name);
        (name.to_string(), self.outcome.unwrap_or(Outcome::Passed))
    }
}

impl Results {
    /// Takes in one report; what it did not run keeps the result of an earlier one.
    pub fn read(&mut self, xml: &str) -> Result<()> {
        let mut reader = Reader::from_str(xml);
        let mut case: Option<Case> = None;
        let mut suites = 0;
        loop {
            let event = reader.read_event().context("not a JUnit report")?;
            match event {
                Event::Start(e) | Event::Empty(e) if e.name().as_ref() == "testsuite" => {
                    suites += 1;
                }
                Event::Start(e) if e.name().as_ref() == "testcase" => case = Some(Case::new(&e)?),
                Event::Empty(e) if e.name().as_ref() == "testcase" => {
                    self.add(Case::new(&e)?.finish());
                }
                Event::End(e) if e.name().as_ref() == "testcase" => {
                    if let Some(case) = case.take() {
                        self.add(case.finish());
                    }
                }
                Event::Start(e) | Event::Empty(e) => {
                    if let Some(case) = &mut case {
                        case.enter(&e)?;
                    }
                }
                Event::End(_) => case.iter_mut().for_each(|case| case.reading = false),
                Event::Text(text) => case.iter_mut().for_each(|case| case.text(&text)),
                Event::CData(text) => case.iter_mut().for_each(|case| case.text(&text)),
                Event::GeneralRef(reference) => {
                    let text = entity(&reference)?;
                    case.iter_mut().for_each(|case| case.text(&text));
                }
                Event::Eof => break,
                _ => {}
            }
        }
        if suites == 0 {
            bail!("not a JUnit report: it has no testsuite");
        }
        Ok(())
    }

    fn add(&mut self, (name, outcome): (String, Outcome)) {
        if !name.contains(MARK) {
            return;
        }
        let known = self.0.entry(name).or_default();
        if outcome != Outcome::NotRun {
            *known = outcome;
        }
    }

    /// The page, below a line that says what was tested.
    pub fn page(&self, tested: &str) -> String {
        let mut areas: BTreeMap<&str, Count> = BTreeMap::new();
        let mut all = Count::default();
        for (name, outcome) in &self.0 {
            let area = areas.entry(area(name)).or_default();
            area.add(outcome);
            all.add(outcome);
        }
        let mut page = format!(
            "# Conformance\n\nWhat the conformance tests of Kubernetes' own suite say of Skiff. `deploy/conformance` \
             wrote this page from the suite's JUnit report: run it again instead of editing.\n\n{tested}\n\n\
             | area | pass | of | fail | not run |\n| --- | ---: | ---: | ---: | ---: |\n"
        );
        for (area, count) in &areas {
            count.row(area, &mut page);
        }
        all.row("**all**", &mut page);
        self.list("Failing", &mut page, |outcome| match outcome {
            Outcome::Failed(reason) => Some(shown(reason)),
            _ => None,
        });
        self.list("Not run", &mut page, |outcome| {
            (*outcome == Outcome::NotRun).then(String::new)
        });
        page
    }

    fn list(&self, title: &str, page: &mut String, reason: impl Fn(&Outcome) -> Option<String>) {
        let lines: Vec<String> = self
            .0
            .iter()
            .filter_map(|(name, outcome)| {
                let name = name.replace(MARK, "");
                let reason = reason(outcome)?;
                let gap = if reason.is_empty() { "" } else { ": " };
                Some(format!("- {}{gap}{reason}", name.trim()))
            })
            .collect();
        if !lines.is_empty() {
            let _ = write!(page, "\n## {title}\n\n{}\n", lines.join("\n"));
        }
    }
}

impl Case {
    fn enter(&mut self, element: &BytesStart<'_>) -> Result<()> {
        match element.name().as_ref() {
            "failure" | "error" => {
                self.reading = true;
                let message = attribute(element, "message")?.unwrap_or_default();
                self.outcome = Some(Outcome::Failed(message));
            }
            "skipped" => self.outcome = Some(Outcome::NotRun),
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        if let (true, Some(Outcome::Failed(reason))) = (self.reading, &mut self.outcome) {
            reason.push_str(text);
        }
    }
}

impl Count {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::NotRun => self.not_run += 1,
        }
    }

    fn row(&self, area: &str, page: &mut String) {
        let of = self.passed + self.failed + self.not_run;
        let Count {
            passed,
            failed,
            not_run,
        } = self;
        let _ = writeln!(page, "| {area} | {passed} | {of} | {failed} | {not_run} |");
    }
}

/// `sig-apps` of `[sig-apps] Job should ...`.
fn area(name: &str) -> &str {
    name.strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .map_or("other", |(area, _)| area)
}

/// The start of a reason as one line of Markdown, without the suite's own `[FAILED]` and its place in the source.
fn shown(reason: &str) -> String {
    let reason = reason.trim_start();
    let marked =
        |mark: &&str| mark.starts_with('[') && mark.chars().skip(1).all(|c| c.is_ascii_uppercase());
    let reason = match reason.split_once("] ") {
        Some((mark, rest)) if marked(&mark) => rest,
        _ => reason,
    };
    let lines = reason.lines().map(str::trim);
    let lines = lines.take_while(|l| !(l.starts_with("In [") && l.contains("] at: ")));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    let line = words.join(" ");
    let mut short: String = line.chars().take(REASON).collect();
    if short.len() < line.len() {
        short.push_str(" ...");
    }
    format!("`{}`", short.replace('`', "'"))
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>> {
    let Some(attribute) = element.try_get_attribute(name)? else {
        return Ok(None);
    };
    Ok(Some(unescape(&attribute.value)?.into_owned()))
}

fn entity(reference: &BytesRef<'_>) -> Result<String> {
    if let Some(character) = reference.resolve_char_ref()? {
        return Ok(character.to_string());
    }
    let known = resolve_xml_entity(reference)
        .with_context(|| format!("unknown entity &{};", &**reference))?;
    Ok(known.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
        <testsuites><testsuite name="Kubernetes e2e suite">
          <properties><property name="RandomSeed" value="1"></property></properties>
          <testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"></testcase>
          <testcase name="[It] [sig-apps] Job should run [Conformance]" status="passed" time="1"/>
          <testcase name="[It] [sig-apps] Job should scale &amp; end [Conformance]" status="failed">
            <failure type="failed">expected &lt;1&gt;
              got `2`<![CDATA[ | 3]]></failure><system-err>long &#x9; log</system-err>
          </testcase>
          <testcase name="[It] [sig-node] Pods should start [Conformance]" status="skipped">
            <skipped message="skipped"></skipped></testcase>
          <testcase name="[It] [sig-node] Pods should be fast" status="failed"></testcase>
        </testsuite></testsuites>"#;

    fn read(reports: &[&str]) -> Results {
        let mut results = Results::default();
        for report in reports {
            results.read(report).unwrap();
        }
        results
    }

    #[test]
    fn only_conformance_tests_count() {
        let results = read(&[FIRST]);
        let names: Vec<&String> = results.0.keys().collect();
        assert_eq!(names.len(), 3, "{names:?}");
        let failed = &results.0["[sig-apps] Job should scale & end [Conformance]"];
        let Outcome::Failed(reason) = failed else {
            panic!("{failed:?}")
        };
        assert_eq!(shown(reason), "`expected <1> got '2' | 3`");
    }

    #[test]
    fn the_last_result_counts_but_a_skip_is_none() {
        let later = r#"<testsuites><testsuite>
          <testcase name="[It] [sig-apps] Job should run [Conformance]" status="skipped"/>
          <testcase name="[It] [sig-apps] Job should scale &amp; end [Conformance]" status="passed"/>
          <testcase name="[It] [sig-node] Pods should start [Conformance]" status="timedout">
            <error message="late" type="timedout"></error></testcase>
        </testsuite></testsuites>"#;
        let results = read(&[FIRST, later]);
        let outcomes: Vec<Outcome> = results.0.values().cloned().collect();
        let late = Outcome::Failed("late".into());
        assert_eq!(outcomes, [Outcome::Passed, Outcome::Passed, late]);
    }

    #[test]
    fn the_page_counts_by_area_and_names_what_fails() {
        let page = read(&[FIRST]).page("Tested now.");
        for line in [
            "Tested now.",
            "| sig-apps | 1 | 2 | 1 | 0 |",
            "| sig-node | 0 | 1 | 0 | 1 |",
            "| **all** | 1 | 3 | 1 | 1 |",
            "- [sig-apps] Job should scale & end: `expected <1> got '2' | 3`",
            "- [sig-node] Pods should start",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for text in ["", "<html></html>", "<testsuites><testsuite></x>"] {
            assert!(Results::default().read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reason_is_shown_without_where_the_suite_gave_it() {
        for (text, want) in [
            (
                "[FAILED] no\n  pods\nIn [It] at: /src/pods.go:1 @ 1/2\n",
                "`no pods`",
            ),
            ("[sig-apps] is [FAILED] too", "`[sig-apps] is [FAILED] too`"),
        ] {
            assert_eq!(shown(text), want);
        }
    }

    #[test]
    fn a_long_reason_is_cut() {
        let long = shown(&"é".repeat(REASON + 1));
        assert_eq!(long, format!("`{} ...`", "é".repeat(REASON)));
    }
}
