//! `vessel version`

use serde_json::{Value, json};
use vessel_api::Version;

use super::FormatOption;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::template::Data;

/// Show the versions of this command and of the daemon
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    format: FormatOption,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let template = self.format.template()?;
        let server = context
            .client()
            .and_then(|client| client.server_version().map_err(Failure::from));
        if let Some(template) = template {
            let value = json!({
                "Client": client_json(),
                "Server": server.as_ref().ok().map(server_json),
            });
            // A template may ask for the client alone; without a daemon its part is missing.
            let text = template.apply(&Data::new(&value)).map_err(Failure::new)?;
            output::print_line(&text)?;
            return server.map(drop);
        }
        output::print(&client_text())?;
        let server = server?;
        output::print(&server_text(&server))?;
        Ok(())
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn client_json() -> Value {
    json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": vessel_api::API_VERSION,
        "DefaultAPIVersion": vessel_api::API_VERSION,
        "GitCommit": "",
        "GoVersion": "",
        "Os": std::env::consts::OS,
        "Arch": architecture(),
        "BuildTime": "",
        "Context": "default",
    })
}

fn server_json(version: &Version) -> Value {
    serde_json::to_value(version).unwrap_or_default()
}

fn client_text() -> String {
    format!(
        "Client: Vessel\n Version:           {}\n API version:       {}\n OS/Arch:           {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        vessel_api::API_VERSION,
        std::env::consts::OS,
        architecture()
    )
}

fn server_text(version: &Version) -> String {
    let platform = &version.platform.name;
    let mut out = if platform.is_empty() {
        "\nServer:\n".to_string()
    } else {
        format!("\nServer: {platform}\n")
    };
    let mut line = |indent: usize, name: &str, value: &str| {
        let label = format!("{name}:");
        out.push_str(&format!(
            "{}{label:<width$}{value}\n",
            " ".repeat(indent),
            width = 20 - indent
        ));
    };
    for component in &version.components {
        line(1, &component.name, "");
        let detail = |name: &str| component.details.get(name).map_or("", String::as_str);
        line(2, "Version", &component.version);
        if component.name != "Engine" {
            for (name, value) in &component.details {
                line(2, name, value);
            }
            continue;
        }
        line(
            2,
            "API version",
            &format!(
                "{} (minimum version {})",
                detail("ApiVersion"),
                detail("MinAPIVersion")
            ),
        );
        for (label, name) in [
            ("Go version", "GoVersion"),
            ("Git commit", "GitCommit"),
            ("Built", "BuildTime"),
        ] {
            if !detail(name).is_empty() {
                line(2, label, detail(name));
            }
        }
        line(2, "OS/Arch", &format!("{}/{}", detail("Os"), detail("Arch")));
        line(2, "Experimental", detail("Experimental"));
    }
    // Trailing blanks of names without a value.
    out.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server() {
        let version: Version =
            serde_json::from_str(include_str!("../../../api/tests/golden/version.json")).unwrap();
        let text = server_text(&version);
        assert!(
            text.starts_with("\nServer:\n Engine:\n  Version:          20.10.24+dfsg1\n"),
            "{text}"
        );
        assert!(
            text.contains("\n  API version:      1.41 (minimum version 1.12)\n"),
            "{text}"
        );
        assert!(
            text.contains("\n containerd:\n  Version:          1.6.20~ds1\n  GitCommit:        1.6.20"),
            "{text}"
        );
    }
}
