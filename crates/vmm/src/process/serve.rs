//! While the machine runs: requests are answered, its end is waited for.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Pid, WaitOptions};

use super::Running;
use crate::control::{Answer, Asked, Ended, Event, Request, Sender, Server, Stats};
use crate::machine::{End, Machine};

/// Serves until the machine has ended.
pub(super) fn serve(server: &Server, running: Running) -> ExitCode {
    let sender = server.sender();
    let waiter = {
        let (machine, sender) = (running.machine.clone(), sender.clone());
        spawn("end", move || wait_for_end(&machine, &sender))
    };
    if let Some(process) = running.files {
        let (machine, sender) = (running.machine.clone(), sender.clone());
        let watcher = spawn("files-end", move || watch(process, &machine, &sender));
        if watcher.is_err() {
            running.machine.end();
        }
    }
    let Ok(waiter) = waiter else {
        let message = "the machine's process gets no thread".to_owned();
        let _ = sender.event(&Event::Failed { message });
        return ExitCode::FAILURE;
    };
    let mut paused = false;
    loop {
        match server.receive() {
            Ok(Some(asked)) => {
                if let Err(error) = obey(asked, &running, &sender, &mut paused) {
                    tracing::debug!(%error, "the control socket's other end has gone");
                }
            }
            // Nobody is responsible for the machine any more, or it has ended.
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "the control socket is broken");
                break;
            }
        }
    }
    running.machine.end();
    match waiter.join() {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<std::thread::JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// Waits for the machine's end and tells it. Whether it was one the machine is made for.
fn wait_for_end(machine: &Machine, sender: &Sender) -> bool {
    let ended = |how| Event::Ended { how };
    let event = match machine.wait() {
        End::PowerOff => ended(Ended::PowerOff),
        End::Reset => ended(Ended::Reset),
        End::Asked => ended(Ended::Asked),
        End::Failed(message) => Event::Failed { message },
    };
    // Nobody to tell: nobody who wants to know.
    let _ = sender.event(&event);
    let _ = rustix::net::shutdown(sender.as_fd(), rustix::net::Shutdown::Read);
    matches!(event, Event::Ended { .. })
}

/// Without its files a machine cannot go on.
fn watch(process: Pid, machine: &Machine, sender: &Sender) {
    let ended = loop {
        match rustix::process::waitpid(Some(process), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(Some((_, status))) => {
                break match (status.terminating_signal(), status.exit_status()) {
                    (Some(signal), _) => format!("by signal {signal}"),
                    (_, Some(code)) => format!("with status {code}"),
                    _ => "for an unknown reason".to_owned(),
                };
            }
            Ok(None) => {}
            Err(error) => break format!("unnoticed ({error})"),
        }
    };
    let message = format!("the server of the machine's shared directories has ended {ended}");
    let _ = sender.event(&Event::Failed { message });
    machine.end();
}

fn obey(asked: Asked, running: &Running, sender: &Sender, paused: &mut bool) -> io::Result<()> {
    let Asked {
        id,
        request,
        descriptor,
    } = asked;
    let machine = &running.machine;
    match request {
        Request::Connect { port } => {
            let Some(connector) = &running.connector else {
                return sender.refuse(id, "the machine has no sockets to its guest");
            };
            let Some(stream) = descriptor else {
                return sender.refuse(
                    id,
                    "a connection to the guest needs a stream socket with the request",
                );
            };
            let sender = sender.clone();
            let outcome = move |result: io::Result<()>| {
                let told = match result {
                    Ok(()) => sender.answer(id, Answer::default()),
                    Err(error) => sender.refuse(id, refused(port, &error)),
                };
                if let Err(error) = told {
                    tracing::debug!(%error, "nobody hears of a connection to the guest");
                }
            };
            connector.connect(port, stream, Box::new(outcome));
            return Ok(());
        }
        Request::Pause => {
            if !std::mem::replace(paused, true) {
                machine.pause();
            }
        }
        Request::Resume => {
            if std::mem::replace(paused, false) {
                machine.resume();
            }
        }
        Request::Balloon { bytes } => match &running.balloon {
            Some(balloon) => balloon.set_target(bytes),
            None => return sender.refuse(id, "the machine has no balloon"),
        },
        Request::Stats => {
            let stats = Some(stats(machine, running));
            return sender.answer(id, Answer { stats });
        }
        Request::PowerButton => machine.press_power_button(),
        Request::Quit => machine.end(),
    }
    sender.answer(id, Answer::default())
}

fn refused(port: u32, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!(
                "the guest refuses a connection to its port {port}: nothing listens there, or too many wait"
            )
        }
        io::ErrorKind::TimedOut => format!("the guest does not answer a connection to its port {port}"),
        io::ErrorKind::ConnectionReset => {
            format!("the guest's driver has gone during a connection to its port {port}")
        }
        _ => error.to_string(),
    }
}

fn stats(machine: &Arc<Machine>, running: &Running) -> Stats {
    Stats {
        devices: machine
            .devices()
            .iter()
            .map(|(slot, device)| (*slot, device.metrics().snapshot().into()))
            .collect(),
        balloon: running.balloon.as_ref().map(super::Balloon::stats),
    }
}
