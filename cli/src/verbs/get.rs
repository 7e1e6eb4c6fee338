//! `get`: objects as the server's tables show them, or in one of the formats of `-o`, once or as they change.

use std::io::Write;

use anyhow::{Result, anyhow, bail};
use futures::StreamExt;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::jsonpath::{Template, plain};
use super::kinds::Kind;
use super::manifest::Files;
use super::output::{Format, line, measure};
use super::session::{Session, escape, is_not_found};
use super::target::{self, Selectors, Target};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Show one or many objects
#[derive(Debug, clap::Args)]
pub struct Args {
    /// TYPE[,TYPE] [NAME...] or TYPE/NAME...
    resources: Vec<String>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    selectors: Selectors,
    /// Format: wide, yaml, json, name, jsonpath=..., custom-columns=...
    #[arg(long, short = 'o')]
    output: Option<String>,
    /// Go on showing changes
    #[arg(long, short = 'w')]
    watch: bool,
    /// Show changes only, not what is there
    #[arg(long)]
    watch_only: bool,
    /// No headings
    #[arg(long)]
    no_headers: bool,
    /// A column with all labels
    #[arg(long)]
    show_labels: bool,
    /// Columns with the values of these labels
    #[arg(long, short = 'L', value_delimiter = ',')]
    label_columns: Vec<String>,
    /// Show the kind before every name
    #[arg(long)]
    show_kind: bool,
    /// Sort by a field, such as .metadata.creationTimestamp
    #[arg(long)]
    sort_by: Option<String>,
    /// Be silent about objects that are not there
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    ignore_not_found: bool,
    /// Show metadata.managedFields, with -o yaml or json
    #[arg(long)]
    show_managed_fields: bool,
    /// Show what the server answers at this path, as it is
    #[arg(long, value_name = "PATH")]
    raw: Option<String>,
}

pub async fn run(session: &Session, args: Args) -> Result<()> {
    if let Some(path) = &args.raw {
        return raw(session, &args, path).await;
    }
    let mut format = Format::parse(args.output.as_deref())?;
    if args.show_managed_fields {
        format = format.with_managed_fields();
    }
    let targets = match args.files.is_empty() {
        true => target::parse(session, &args.resources).await?,
        false => {
            let objects = args.files.objects(session).await?;
            objects
                .into_iter()
                .map(|o| Target {
                    kind: o.kind,
                    names: vec![o.name],
                })
                .collect()
        }
    };
    if args.watch || args.watch_only {
        let [target] = targets.as_slice() else {
            bail!("you may only specify a single resource type with --watch");
        };
        return watch(session, &args, target, &format).await;
    }
    if format.is_table() {
        tables(session, &args, &targets, &format).await
    } else {
        documents(session, &args, &targets, &format).await
    }
}

/// The answer to a GET, byte by byte as it comes.
async fn raw(session: &Session, args: &Args, path: &str) -> Result<()> {
    if args.watch || args.watch_only {
        bail!(
            "--raw may not be specified with other flags that filter the server request or alter the output"
        );
    }
    if args.output.is_some() {
        bail!("--raw and --output are mutually exclusive");
    }
    if !args.resources.is_empty() || !args.files.is_empty() {
        bail!("arguments may not be passed when --raw is specified");
    }
    if !path.starts_with('/') {
        bail!("the path of --raw begins with a slash: {path:?}");
    }
    let response = session.send(Method::GET, path, "*/*", None).await?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| anyhow!("the answer broke off: {error}"))?;
        if let Some(data) = frame.data_ref() {
            let mut out = std::io::stdout();
            out.write_all(data)?;
            out.flush()?;
        }
    }
    Ok(())
}

/// What the server has for a target: one answer for the list, or one for each name.
async fn fetch(
    session: &Session,
    args: &Args,
    target: &Target,
    accept: &str,
) -> Result<Vec<Value>> {
    let path = target.kind.path(namespace(session, args));
    let accept_table = accept == TABLE;
    let full = if accept_table && args.sort_by.is_some() {
        "&includeObject=Object"
    } else {
        ""
    };
    if target.names.is_empty() {
        return Ok(vec![
            session
                .list(&path, &format!("{}{full}", args.selectors.query()), accept)
                .await?,
        ]);
    }
    let mut found = Vec::new();
    for name in &target.names {
        match session
            .json_as(
                http::Method::GET,
                &format!("{path}/{name}?{full}"),
                accept,
                None,
            )
            .await
        {
            Ok(answer) => found.push(answer),
            Err(error) if is_not_found(&error) && args.ignore_not_found => {}
            // The others are shown all the same.
            Err(error) if target.names.len() > 1 && is_not_found(&error) => eprintln!("{error}"),
            Err(error) => return Err(error),
        }
    }
    if found.is_empty() && target.names.len() > 1 && !args.ignore_not_found {
        return Err(super::session::Exit(1).into());
    }
    Ok(found)
}

fn namespace<'a>(session: &'a Session, args: &Args) -> Option<&'a str> {
    (!args.selectors.all_namespaces).then_some(session.namespace.as_str())
}

async fn documents(
    session: &Session,
    args: &Args,
    targets: &[Target],
    format: &Format,
) -> Result<()> {
    let mut items = Vec::new();
    let mut single = targets.len() == 1 && targets[0].names.len() == 1;
    for target in targets {
        for mut answer in fetch(session, args, target, "application/json").await? {
            match answer["items"].take() {
                Value::Array(list) if target.names.is_empty() => {
                    // Items of a list do not say what they are.
                    items.extend(list.into_iter().map(|mut item| {
                        item["apiVersion"] = target.kind.api_version().into();
                        item["kind"] = target.kind.kind.clone().into();
                        item
                    }));
                }
                list => {
                    if !list.is_null() {
                        answer["items"] = list;
                    } else if let Some(fields) = answer.as_object_mut() {
                        fields.remove("items");
                    }
                    items.push(answer);
                }
            }
        }
    }
    if let Some(path) = &args.sort_by {
        sort(&mut items, &Template::path(path)?, |item| item);
    }
    single &= items.len() == 1;
    let whole = match single {
        true => items.remove(0),
        false if items.is_empty() && args.ignore_not_found => return Ok(()),
        false => {
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
        }
    };
    format.print(&whole, None, &mut std::io::stdout().lock())
}

fn sort<T>(items: &mut [T], path: &Template, object: impl Fn(&T) -> &Value) {
    items.sort_by(|a, b| {
        let (a, b) = (path.values(object(a)), path.values(object(b)));
        let (a, b) = (
            a.first().copied().unwrap_or(&Value::Null),
            b.first().copied().unwrap_or(&Value::Null),
        );
        match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => plain(a).cmp(&plain(b)),
        }
    });
}

async fn tables(session: &Session, args: &Args, targets: &[Target], format: &Format) -> Result<()> {
    let mut shown = 0;
    let many = targets.len() > 1;
    for target in targets {
        let mut whole: Option<Value> = None;
        for mut answer in fetch(session, args, target, TABLE).await? {
            match &mut whole {
                None => whole = Some(answer),
                Some(whole) => {
                    if let (Some(all), Some(more)) =
                        (whole["rows"].as_array_mut(), answer["rows"].as_array_mut())
                    {
                        all.append(more);
                    }
                }
            }
        }
        let Some(mut table) = whole else { continue };
        if let (Some(path), Some(rows)) = (&args.sort_by, table["rows"].as_array_mut()) {
            sort(rows, &Template::path(path)?, |row| &row["object"]);
        }
        let printer = Printer::new(args, &target.kind, format, many);
        let rows = printer.rows(&table, &printer.columns(&table));
        if rows.is_empty() {
            continue;
        }
        if shown > 0 {
            println!();
        }
        shown += rows.len();
        let mut all = vec![printer.header(&table)];
        if args.no_headers {
            all.clear();
        }
        all.extend(rows);
        print!("{}", super::output::align(&all));
    }
    if shown == 0 && !args.ignore_not_found {
        match targets.iter().any(|t| t.kind.namespaced) && !args.selectors.all_namespaces {
            true => eprintln!("No resources found in {} namespace.", session.namespace),
            false => eprintln!("No resources found"),
        }
    }
    Ok(())
}

/// Turns the server's tables into rows of text.
struct Printer<'a> {
    args: &'a Args,
    wide: bool,
    with_namespace: bool,
    prefix: Option<String>,
}

impl<'a> Printer<'a> {
    fn new(args: &'a Args, kind: &Kind, format: &Format, many: bool) -> Self {
        Self {
            args,
            wide: matches!(format, Format::Table { wide: true }),
            with_namespace: args.selectors.all_namespaces && kind.namespaced,
            prefix: (many || args.show_kind).then(|| kind.type_name()),
        }
    }

    /// Which columns are shown, and which of them is the name.
    fn columns(&self, table: &Value) -> Vec<(usize, bool)> {
        let definitions = table["columnDefinitions"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate();
        let shown =
            definitions.filter(|(_, c)| self.wide || c["priority"].as_i64().unwrap_or(0) == 0);
        shown
            .map(|(at, c)| (at, c["format"] == "name" || c["name"] == "Name"))
            .collect()
    }

    fn header(&self, table: &Value) -> Vec<String> {
        let columns = self.columns(table);
        let definitions = table["columnDefinitions"].as_array();
        let names = columns
            .iter()
            .filter_map(|(at, _)| definitions?.get(*at)?["name"].as_str());
        let mut header: Vec<String> = names.map(str::to_uppercase).collect();
        if self.with_namespace {
            header.insert(0, "NAMESPACE".into());
        }
        header.extend(
            self.args
                .label_columns
                .iter()
                .map(|l| l.rsplit('/').next().unwrap_or(l).to_uppercase()),
        );
        if self.args.show_labels {
            header.push("LABELS".into());
        }
        header
    }

    fn rows(&self, table: &Value, columns: &[(usize, bool)]) -> Vec<Vec<String>> {
        table["rows"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| self.row(row, columns))
            .collect()
    }

    fn row(&self, row: &Value, columns: &[(usize, bool)]) -> Vec<String> {
        let meta = &row["object"]["metadata"];
        let mut cells: Vec<String> = columns
            .iter()
            .map(|(at, is_name)| {
                let text =
                    plain(row["cells"].get(*at).unwrap_or(&Value::Null)).replace('\n', "\\n");
                match &self.prefix {
                    Some(prefix) if *is_name => format!("{prefix}/{text}"),
                    _ => text,
                }
            })
            .collect();
        if self.with_namespace {
            cells.insert(0, plain(&meta["namespace"]));
        }
        for label in &self.args.label_columns {
            cells.push(plain(&meta["labels"][label.as_str()]));
        }
        if self.args.show_labels {
            cells.push(labels(&meta["labels"]));
        }
        cells
    }
}

pub fn labels(labels: &Value) -> String {
    let all: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    if all.is_empty() {
        "<none>".to_owned()
    } else {
        all.join(",")
    }
}

async fn watch(session: &Session, args: &Args, target: &Target, format: &Format) -> Result<()> {
    let path = target.kind.path(namespace(session, args));
    let mut query = args.selectors.query();
    if let [name] = target.names.as_slice() {
        query += &format!(
            "&fieldSelector={}",
            escape(&format!("metadata.name={name}"))
        );
    } else if !target.names.is_empty() {
        bail!("--watch takes one name or none");
    }
    let accept = if format.is_table() {
        TABLE
    } else {
        "application/json"
    };
    let first = session.list(&path, &query, accept).await?;
    let mut revision = first["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let printer = Printer::new(args, &target.kind, format, false);
    let mut out = std::io::stdout();
    let (mut widths, mut columns) = (Vec::new(), printer.columns(&first));
    if format.is_table() && !args.watch_only {
        let mut all = if args.no_headers {
            vec![]
        } else {
            vec![printer.header(&first)]
        };
        all.extend(printer.rows(&first, &columns));
        measure(&mut widths, &all);
        if all.len() > usize::from(!args.no_headers) {
            all.iter().for_each(|row| print!("{}", line(row, &widths)));
        }
    } else if !args.watch_only {
        for item in first["items"].as_array().into_iter().flatten() {
            separated(format, item, &target.kind, &mut out)?;
        }
    }
    loop {
        // The server ends a watch now and then; the next one goes on where it ended.
        let url =
            format!("{path}?watch=true&allowWatchBookmarks=true&resourceVersion={revision}{query}");
        let mut events = session.watch(&url, accept).await?;
        while let Some(event) = events.next().await {
            let (kind, object) = event?;
            let meta = if object["kind"] == "Table" {
                &object["rows"][0]["object"]["metadata"]
            } else {
                &object["metadata"]
            };
            if let Some(seen) = meta["resourceVersion"].as_str() {
                revision = seen.to_owned();
            }
            if kind == "BOOKMARK" {
                continue;
            }
            if !format.is_table() {
                separated(format, &object, &target.kind, &mut out)?;
                continue;
            }
            if object["columnDefinitions"]
                .as_array()
                .is_some_and(|c| !c.is_empty())
            {
                let known = widths.is_empty();
                columns = printer.columns(&object);
                if known && !args.no_headers {
                    let header = printer.header(&object);
                    let mut all = vec![header.clone()];
                    all.extend(printer.rows(&object, &columns));
                    measure(&mut widths, &all);
                    write!(out, "{}", line(&header, &widths))?;
                }
            }
            let rows = printer.rows(&object, &columns);
            measure(&mut widths, &rows);
            rows.iter()
                .try_for_each(|row| write!(out, "{}", line(row, &widths)))?;
            out.flush()?;
        }
    }
}

fn separated(format: &Format, item: &Value, kind: &Kind, out: &mut impl Write) -> Result<()> {
    if matches!(format, Format::Yaml { .. }) {
        writeln!(out, "---")?;
    }
    format.print(item, Some(kind), out)?;
    out.flush()?;
    Ok(())
}
