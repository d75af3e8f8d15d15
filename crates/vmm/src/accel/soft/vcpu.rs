//! A vCPU in software: the processor, its surroundings, and waiting when it halts.

use std::num::NonZeroU64;
use std::sync::Arc;

use vessel_softcpu::{Cpu, Memory, Stop};

use super::super::{Bus, Exit, Result, Vcpu, VcpuHandle, VcpuState};
use super::clock::Clock;
use super::environment::Surroundings;
use super::interrupts::Interrupts;
use super::registers;

/// A vCPU.
pub(super) struct SoftVcpu {
    cpu: Box<Cpu>,
    surroundings: Surroundings,
}

impl SoftVcpu {
    /// The processor `index` in the state after reset. `None`: the machine has fewer.
    pub(super) fn new(
        index: u8,
        memory: Arc<Memory>,
        interrupts: Arc<Interrupts>,
        clock: Arc<Clock>,
        bus: Arc<dyn Bus>,
    ) -> Option<Self> {
        let attention = interrupts.processor(index)?.attention().clone();
        let frequency = clock.frequency();
        let cpu = Cpu::with_attention(memory.clone(), index, frequency / 1000, attention);
        let surroundings = Surroundings::new(index, interrupts, clock, bus, memory)?;
        Some(Self { cpu, surroundings })
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Result<Exit> {
        // A halted processor's timer would be 50 microseconds late otherwise. Where it cannot be set, it is.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        loop {
            match self.cpu.run(&mut self.surroundings) {
                Stop::Halted => self.surroundings.processor().wait(),
                Stop::Kicked if self.surroundings.is_reset() => return Ok(Exit::Shutdown),
                Stop::Kicked => return Ok(Exit::Kicked),
                Stop::Shutdown => return Ok(Exit::Shutdown),
            }
        }
    }

    fn state(&self) -> Result<VcpuState> {
        let state = self.cpu.state();
        let processor = self.surroundings.processor();
        let now = processor.now();
        let (cr8, nmi, lapic) =
            processor.with(|apic| (apic.task_priority_class(), apic.nmi_waits(), apic.state(now)));
        let registers = registers::registers(&state, cr8);
        let events = registers::events(&state.events, nmi);
        let mut msrs = state.msrs;
        msrs.extend(self.surroundings.msrs());
        Ok(VcpuState {
            registers,
            msrs,
            xsave: state.xsave,
            events,
            lapic,
        })
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<()> {
        self.cpu.set_state(&registers::soft_state(state));
        self.surroundings.restore(&state.msrs, &state.lapic);
        let events = &state.events;
        self.surroundings
            .processor()
            .with(|apic| apic.set_events(events.waits_for_start, events.nmi_pending));
        Ok(())
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        Arc::new(self.surroundings.handle())
    }
}
