//! `vessel port`

use vessel_api::PortBinding;

use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;

/// Show where a container's ports are published
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// One of its ports
    #[arg(value_name = "PRIVATE_PORT[/PROTO]")]
    port: Option<String>,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let ports = context
            .client()?
            .container_inspect(&self.container, false)?
            .network_settings
            .ports;
        let address = |binding: &PortBinding| match binding.host_ip.as_str() {
            ip if ip.contains(':') => format!("[{ip}]:{}", binding.host_port),
            ip => format!("{ip}:{}", binding.host_port),
        };
        if let Some(port) = &self.port {
            let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            if number.parse::<u16>().is_err() {
                return Err(Failure::new(format!("invalid port '{port}'")));
            }
            let bindings = ports
                .get(&format!("{number}/{}", protocol.to_lowercase()))
                .cloned()
                .flatten()
                .unwrap_or_default();
            if bindings.is_empty() {
                return Err(Failure::new(format!(
                    "no public port '{port}' published for {}",
                    self.container
                )));
            }
            for binding in &bindings {
                output::print_line(&address(binding))?;
            }
            return Ok(());
        }
        let mut ports: Vec<_> = ports.into_iter().collect();
        ports.sort_by_key(|(port, _)| {
            let (number, protocol) = port.split_once('/').unwrap_or((port, ""));
            (number.parse::<u16>().unwrap_or(0), protocol.to_string())
        });
        for (port, bindings) in ports {
            for binding in bindings.unwrap_or_default() {
                output::print_line(&format!("{port} -> {}", address(&binding)))?;
            }
        }
        Ok(())
    }
}
