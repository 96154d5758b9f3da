//! The victim: a child that is run one machine instruction at a time, and left, killed or let go at any of them.
//!
//! The stretch that is stepped lies between two *markers*. The first is a breakpoint instruction: the victim's own
//! preparations run at full speed and cost no steps. The second is a no-op that nobody else writes, and is recognised
//! before it is executed, by reading the instruction at the program counter; that has to be read anyway, for it tells
//! system calls, the only instructions that may sleep, from all others. A trap at the end too would kill a victim that
//! was let go (a handler for it does not last: when a step falls where signals are blocked, the kernel forces SIGTRAP
//! through by resetting its action). A flag in shared memory would have the victim stepped from its very beginning.
//! Both markers also bar the compiler from moving accesses across them, since an `asm!` block clobbers memory.
//!
//! NB: on aarch64 a loop of `ldxr`/`stxr` never ends under a single-stepper, whose every trap clears the exclusive
//! monitor. Rust's out-of-line atomics use LSE instructions where the CPU has them; without LSE this test cannot run.
//!
//! References: ptrace(2), get_robust_list(2).

#![expect(unsafe_code, reason = "ptrace, breakpoint instructions, dladdr")]

use std::ffi::{CStr, c_long, c_void};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};
use std::{io, ptr};

use crate::child::{Child, Status};
use crate::route::Landmark;
use crate::shared::Board;

/// No operation is as long as this: it stopped making progress.
const MOST_STEPS: u64 = 5_000_000;

/// Nor does any take as long as this without falling asleep.
const LONGEST_RUN: Duration = Duration::from_secs(30);

/// Between two looks at a victim that does not tell when it gets somewhere.
const SHORT_NAP: Duration = Duration::from_micros(50);

#[cfg(target_arch = "x86_64")]
mod machine {
    /// How far to move the victim so that it stands behind the start marker: the trap has executed it.
    pub(super) const START_SIZE: u64 = 0;

    /// Traps.
    #[inline(always)]
    pub(super) fn start_marker() {
        // SAFETY: touches no register and no stack; the tracer resumes behind it.
        unsafe { std::arch::asm!("int3", options(nostack)) };
    }

    /// Does nothing.
    #[inline(always)]
    pub(super) fn end_marker() {
        // SAFETY: `nop dword ptr [rax + …]` with a number of ours for the distance; it reads no memory.
        unsafe { std::arch::asm!(".byte 0x0F, 0x1F, 0x80, 0x73, 0x74, 0x65, 0x70", options(nostack)) };
    }

    pub(super) fn is_end_marker(code: u64) -> bool {
        code << 8 == 0x7065_7473_801F_0F00
    }

    pub(super) fn is_system_call(code: u64) -> bool {
        code as u16 == 0x050F
    }

    /// The words to poke into the tracee's user area to stop before the instruction at `address`; 0 for none.
    pub(super) fn breakpoint(address: u64) -> Option<[(usize, usize); 2]> {
        let registers = std::mem::offset_of!(libc::user, u_debugreg);
        let control = registers + 7 * size_of::<u64>();
        // The lowest bit of the control register switches the first breakpoint on, as one on execution.
        Some([(registers, address as usize), (control, usize::from(address != 0))])
    }

    pub(super) fn counter(registers: &mut libc::user_regs_struct) -> &mut u64 {
        &mut registers.rip
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    /// How far to move the victim so that it stands behind the start marker: the trap leaves it there.
    pub(super) const START_SIZE: u64 = 4;

    /// Traps.
    #[inline(always)]
    pub(super) fn start_marker() {
        // SAFETY: touches no register and no stack; the tracer resumes behind it.
        unsafe { std::arch::asm!("brk #0x5745", options(nostack)) };
    }

    /// Does nothing.
    #[inline(always)]
    pub(super) fn end_marker() {
        // SAFETY: the zero register swallows the number.
        unsafe { std::arch::asm!("movz xzr, #0x5745", options(nostack)) };
    }

    pub(super) fn is_end_marker(code: u64) -> bool {
        code as u32 == 0xD280_001F | (0x5745 << 5)
    }

    pub(super) fn is_system_call(code: u64) -> bool {
        code as u32 == 0xD400_0001
    }

    /// None: it would take another register set, and nobody has needed the speed yet.
    pub(super) fn breakpoint(_: u64) -> Option<[(usize, usize); 2]> {
        None
    }

    pub(super) fn counter(registers: &mut libc::user_regs_struct) -> &mut u64 {
        &mut registers.pc
    }
}

/// The stretch of the victim's code that is stepped.
///
/// Only made in a victim: without a tracer the start marker would be a crash.
pub(crate) struct Section(());

impl Section {
    /// Runs `operation` between the two markers. Once per victim.
    #[inline(always)]
    pub(crate) fn run<R>(&self, operation: impl FnOnce() -> R) -> R {
        machine::start_marker();
        let result = operation();
        machine::end_marker();
        result
    }
}

/// Where the victim came to stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Before an instruction of the section.
    Inside,
    /// At the end marker.
    End,
    /// Asleep in a system call that its last step began.
    Asleep,
}

/// A traced child.
pub(crate) struct Tracee {
    child: Child,
    steps: u64,
    stop: Stop,
    /// Where it stands (or, asleep, the call that it began), and the code there.
    counter: u64,
    instruction: u64,
    /// Where it is running to, if it is not stepped.
    landmark: Option<Landmark>,
    /// A signal that was reported to us before it, to be passed on when it goes on; 0 for none.
    signal: i32,
    /// Where it stood after each step, if it was stepped from the start.
    counters: Vec<u64>,
    /// The CPUs that it may use when it is not stepped.
    cpus: Option<libc::cpu_set_t>,
}

impl Tracee {
    /// Forks a victim and lets it run to the start of its section.
    pub(crate) fn start(
        board: &Board,
        body: impl FnOnce(&Section) -> Result<(), String>,
        deadline: Instant,
    ) -> Result<Self, String> {
        let child = Child::fork(&board.victim, || {
            ptrace(libc::PTRACE_TRACEME.into(), 0, 0, 0)
                .map_err(|error| format!("ptrace is refused: {error}"))?;
            body(&Section(())).map(|()| String::new())
        });
        let mut tracee = Self {
            child,
            steps: 0,
            stop: Stop::Inside,
            counter: 0,
            instruction: 0,
            landmark: None,
            signal: 0,
            counters: Vec::new(),
            cpus: cpus_of_caller(),
        };
        loop {
            match tracee.child.poll() {
                Some(Status::Stopped(libc::SIGTRAP)) => break,
                Some(Status::Stopped(signal)) => {
                    return Err(format!("signal {signal} before the section"));
                }
                Some(_) => {
                    return Err(format!("ended before its section: {}", board.victim.text()));
                }
                None if Instant::now() >= deadline => {
                    return Err("never came to its section".into());
                }
                None => std::thread::sleep(SHORT_NAP),
            }
        }
        tracee.request(libc::PTRACE_SETOPTIONS.into(), 0, libc::PTRACE_O_EXITKILL as usize)?;
        tracee.move_counter(machine::START_SIZE)?;
        tracee.look()?;
        tracee.counters.push(tracee.counter);
        Ok(tracee)
    }

    /// Puts the tracer and the victim on one CPU, the tracer until the answer is dropped.
    ///
    /// NB: a step costs two switches between the two: 23 µs on one CPU of a virtual machine, 25 to 280 µs
    /// across two (AMD EPYC, Linux 6.18).
    pub(crate) fn share_cpu(&self) -> Option<SharedCpu> {
        // SAFETY: asks for a number.
        let cpu = usize::try_from(unsafe { libc::sched_getcpu() }).ok()?;
        // SAFETY: a set of CPUs is plain bits, and none is an empty set.
        let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the bounds are checked inside.
        unsafe { libc::CPU_SET(cpu, &mut one) };
        let before = self.cpus?;
        set_cpus(0, &one);
        set_cpus(self.child.pid(), &one);
        Some(SharedCpu { before })
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn stop(&self) -> Stop {
        self.stop
    }

    /// The places passed so far, the start included. Only of use without a landmark.
    pub(crate) fn counters(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.counters)
    }

    /// Makes the next [`Tracee::advance`] run to `landmark`. False if this machine has no breakpoints for us.
    pub(crate) fn head_for(&mut self, landmark: Landmark) -> bool {
        let set = self.set_breakpoint(landmark.address);
        if set {
            self.landmark = Some(landmark);
        }
        set
    }

    fn set_breakpoint(&self, address: u64) -> bool {
        machine::breakpoint(address).is_some_and(|pokes| {
            let mut pokes = pokes.into_iter();
            pokes.all(|(offset, value)| self.request(libc::PTRACE_POKEUSER.into(), offset, value).is_ok())
        })
    }

    /// Executes one instruction, or all up to the landmark. Must not be at the end or asleep.
    pub(crate) fn advance(&mut self) -> Result<Stop, String> {
        debug_assert!(self.stop == Stop::Inside);
        if self.landmark.is_some() {
            return self.run();
        }
        if self.steps == MOST_STEPS {
            return Err(format!("no end after {MOST_STEPS} instructions"));
        }
        self.steps += 1;
        self.go_on(libc::PTRACE_SINGLESTEP.into())?;
        let status = if machine::is_system_call(self.instruction) {
            self.await_stop_or_sleep()?
        } else {
            Some(self.child.wait())
        };
        self.arrived(status)
    }

    fn run(&mut self) -> Result<Stop, String> {
        self.go_on(libc::PTRACE_CONT.into())?;
        let status = self.await_stop_or_sleep()?;
        self.arrived(status)
    }

    /// Waits for the call that it sleeps in to return.
    pub(crate) fn await_wake(&mut self, deadline: Instant) -> Result<Stop, String> {
        debug_assert!(self.stop == Stop::Asleep);
        loop {
            if let Some(status) = self.child.poll() {
                return self.arrived(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(Stop::Asleep);
            }
            std::thread::sleep(SHORT_NAP);
        }
    }

    fn go_on(&mut self, request: c_long) -> Result<(), String> {
        let signal = std::mem::take(&mut self.signal);
        self.request(request, 0, signal as usize)
    }

    /// The status that ends a call or a run, or `None` if the victim sleeps in it.
    fn await_stop_or_sleep(&mut self) -> Result<Option<Status>, String> {
        let deadline = Instant::now() + LONGEST_RUN;
        let mut looks = 0;
        loop {
            if let Some(status) = self.child.poll() {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Err(format!("neither stops nor sleeps for {LONGEST_RUN:?}"));
            }
            looks += 1;
            // The victim shares our CPU: this is what lets it run.
            std::thread::yield_now();
            if looks > 100 && self.child.is_asleep() {
                // Between the looks it may have woken and stopped.
                return Ok(self.child.poll());
            }
        }
    }

    fn arrived(&mut self, status: Option<Status>) -> Result<Stop, String> {
        match status {
            None => self.stop = Stop::Asleep,
            Some(Status::Stopped(libc::SIGTRAP)) if self.landmark.is_some() => {
                self.arrived_running()?;
            }
            Some(Status::Stopped(signal)) => {
                // The end of a child, say. It stands where it stood; what a fatal one does is seen next.
                if signal != libc::SIGTRAP {
                    self.signal = signal;
                }
                self.look()?;
                self.counters.push(self.counter);
            }
            Some(Status::Killed(signal)) => {
                return Err(format!("died of signal {signal} at {}", place(self.counter)));
            }
            Some(Status::Exited(code)) => {
                return Err(format!("exited with {code} inside its section"));
            }
        }
        Ok(self.stop)
    }

    /// A visit to the landmark, perhaps the last one.
    fn arrived_running(&mut self) -> Result<(), String> {
        self.look()?;
        if let Some(landmark) = &mut self.landmark {
            landmark.visits -= 1;
            if landmark.visits == 0 {
                self.steps = landmark.steps;
                self.landmark = None;
                self.set_breakpoint(0);
            }
        }
        Ok(())
    }

    /// Whether it has not passed its landmark as often as it should, wherever it is now.
    pub(crate) fn is_astray(&self) -> bool {
        self.landmark.is_some()
    }

    /// Kills it where it stands.
    pub(crate) fn kill(&mut self) {
        self.child.kill();
    }

    /// Hands it over from the tracer to a real SIGSTOP, which unlike a tracer's stop also ends a sleep in the kernel.
    pub(crate) fn suspend(&mut self) -> Result<(), String> {
        self.child.signal(libc::SIGSTOP);
        let mut deliver = self.signal;
        if self.stop == Stop::Asleep {
            // The signal ends the sleep, and then either the step or the signal is reported first. The call itself is
            // begun again when the signal has been delivered.
            match self.child.wait() {
                Status::Stopped(libc::SIGSTOP) => deliver = libc::SIGSTOP,
                Status::Stopped(libc::SIGTRAP) => {}
                _ => return Err("ended in its sleep".into()),
            }
        }
        if let Some(cpus) = &self.cpus {
            set_cpus(self.child.pid(), cpus);
        }
        self.request(libc::PTRACE_DETACH.into(), 0, deliver as usize)?;
        match self.child.wait() {
            Status::Stopped(libc::SIGSTOP) => Ok(()),
            _ => Err("did not stop at SIGSTOP".into()),
        }
    }

    /// Lets a suspended one run on, and hands back the plain child.
    pub(crate) fn resume(self) -> Child {
        self.child.signal(libc::SIGCONT);
        self.child
    }

    /// Names the place where it stands, for `addr2line` if the symbol is not exported.
    pub(crate) fn place(&self) -> String {
        match self.stop {
            Stop::Asleep => format!("asleep in a call at {}", place(self.counter)),
            _ => place(self.counter),
        }
    }

    fn look(&mut self) -> Result<(), String> {
        self.counter = *machine::counter(&mut self.registers()?);
        // At the very end of a mapping the eight bytes from here on may reach too far; the word around them does not.
        let skip = self.counter % 8;
        let code = match self.peek(self.counter) {
            Ok(code) => code,
            Err(_) => self.peek(self.counter - skip)? >> (8 * skip),
        };
        self.instruction = code;
        self.stop = if machine::is_end_marker(code) { Stop::End } else { Stop::Inside };
        Ok(())
    }

    fn peek(&self, address: u64) -> Result<u64, String> {
        let mut word = 0_u64;
        self.request(libc::PTRACE_PEEKTEXT.into(), address as usize, (&raw mut word).expose_provenance())?;
        Ok(word)
    }

    fn move_counter(&self, distance: u64) -> Result<(), String> {
        let mut registers = self.registers()?;
        let counter = machine::counter(&mut registers);
        *counter = counter.wrapping_add(distance);
        self.exchange(libc::PTRACE_SETREGSET.into(), ptr::from_mut(&mut registers)).map(drop)
    }

    fn registers(&self) -> Result<libc::user_regs_struct, String> {
        let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
        let length = self.exchange(libc::PTRACE_GETREGSET.into(), registers.as_mut_ptr())?;
        if length != size_of::<libc::user_regs_struct>() {
            return Err(format!("the kernel has {length} bytes of registers"));
        }
        // SAFETY: the kernel has filled all of it.
        Ok(unsafe { registers.assume_init() })
    }

    fn exchange(&self, request: c_long, registers: *mut libc::user_regs_struct) -> Result<usize, String> {
        let mut part =
            libc::iovec { iov_base: registers.cast(), iov_len: size_of::<libc::user_regs_struct>() };
        self.request(request, libc::NT_PRSTATUS as usize, (&raw mut part).expose_provenance())?;
        Ok(part.iov_len)
    }

    fn request(&self, request: c_long, address: usize, data: usize) -> Result<(), String> {
        ptrace(request, self.child.pid(), address, data)
            .map_err(|error| format!("ptrace request {request}: {error}"))
    }
}

/// While it lives, the tracer stays on the victim's CPU.
pub(crate) struct SharedCpu {
    before: libc::cpu_set_t,
}

impl Drop for SharedCpu {
    fn drop(&mut self) {
        set_cpus(0, &self.before);
    }
}

fn cpus_of_caller() -> Option<libc::cpu_set_t> {
    let mut cpus = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the set is writable, and as large as said.
    let failed = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), cpus.as_mut_ptr()) };
    // SAFETY: all zeroes is a set too, the empty one.
    (failed == 0).then(|| unsafe { cpus.assume_init() })
}

fn set_cpus(pid: libc::pid_t, cpus: &libc::cpu_set_t) {
    // The error can be ignored: the choice of CPU is a matter of speed.
    // SAFETY: the set is valid for the length of the call.
    unsafe { libc::sched_setaffinity(pid, size_of::<libc::cpu_set_t>(), ptr::from_ref(cpus)) };
}

/// Whether this kernel, container or emulator lets us trace: runs a short section to its end, step by step.
pub(crate) fn probe() -> Result<(), String> {
    let board = Board::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut tracee = Tracee::start(
        &board,
        |section| {
            section.run(|| std::hint::black_box(1));
            Ok(())
        },
        deadline,
    )?;
    for _ in 0..1_000 {
        if tracee.advance()? == Stop::End {
            return if tracee.steps > 1 { Ok(()) } else { Err("single-stepping has no effect".into()) };
        }
    }
    Err("single-stepping does not find the end of a short section".into())
}

/// The raw call, which (unlike the libc's function) is the same for every libc, peeking included.
fn ptrace(request: c_long, pid: libc::pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: requests act on our own child, or on ourselves for TRACEME; where `data` is an address, the callers
    // above pass that of a live local which is as large as the request demands.
    match unsafe { libc::syscall(libc::SYS_ptrace, request, c_long::from(pid), address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A symbol and a distance if an exported one is near, else an image and an offset.
fn place(address: u64) -> String {
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    // The victim was forked from this process: both have the same images at the same addresses.
    // SAFETY: only looks the address up, whatever it is; `found` is writable.
    if unsafe { libc::dladdr(ptr::with_exposed_provenance::<c_void>(address as usize), found.as_mut_ptr()) }
        == 0
    {
        return format!("{address:#x}");
    }
    // SAFETY: the call has succeeded; all zeroes, it was valid before.
    let found = unsafe { found.assume_init() };
    if let Some(symbol) = text(found.dli_sname) {
        return format!("{symbol}+{:#x}", address - found.dli_saddr.addr() as u64);
    }
    let image = text(found.dli_fname).unwrap_or_default();
    let image = image.rsplit('/').next().unwrap_or_default();
    format!("{image}+{:#x}", address - found.dli_fbase.addr() as u64)
}

fn text(string: *const libc::c_char) -> Option<String> {
    if string.is_null() {
        return None;
    }
    // SAFETY: not null, so one of the dynamic linker's own strings, which end in a zero and live on.
    let string = unsafe { CStr::from_ptr(string) };
    Some(string.to_string_lossy().into_owned())
}
