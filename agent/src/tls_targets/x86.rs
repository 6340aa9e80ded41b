//! Decoding of x86-64 functions: where a probe costs little, what a function calls, and what its registers hold on the
//! way there. Decodes from a function's start and never names an address that is not the start of an instruction.

use std::collections::HashMap;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use super::elf::{Function, Image};
use super::source::Source;

/// Bytes of one function; more is not looked at.
pub const MAX_FUNCTION: u64 = 1 << 16;

/// The registers of the first arguments, System V.
pub const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// A place for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    pub address: u64,
    /// The kernel emulates the instruction, see [`emulated`].
    pub emulated: bool,
}

/// A direct call or jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    pub at: u64,
    pub target: u64,
    /// The instruction behind.
    pub next: u64,
}

/// The instructions of a function.
#[derive(Clone, Debug)]
pub struct Code<'a> {
    bytes: &'a [u8],
    address: u64,
    instructions: Vec<Instruction>,
}

/// Does the kernel emulate this instruction under a probe (`arch/x86/kernel/uprobes.c`, `branch_setup_xol_ops` and
/// `push_setup_xol_ops`)? Else it is single-stepped, which costs a second trap. Only the plain forms: any prefix but
/// the one of `r8` to `r15` changes the answer. Of the nops only the one of one byte: on kernels since 6.18 the
/// five-byte one is replaced by a call, which overwrites memory below the stack pointer that leaf functions use.
pub fn emulated(instruction: &[u8]) -> bool {
    matches!(
        instruction,
        [0x50..=0x57 | 0x90]
            | [0x41, 0x50..=0x57]
            | [0x70..=0x7f | 0xeb, _]
            | [0xe8 | 0xe9, _, _, _, _]
            | [0x0f, 0x80..=0x8f, _, _, _, _]
    )
}

impl<'a> Code<'a> {
    /// A whole function: its last instruction ends where the function does, or it is not decoded right.
    pub fn decode(address: u64, bytes: &'a [u8]) -> Option<Self> {
        let code = Self::prefix(address, bytes);
        (code.len() == bytes.len() && !bytes.is_empty()).then_some(code)
    }

    /// The instructions that are whole at the start of `bytes`: of a function whose end is not known.
    pub fn prefix(address: u64, bytes: &'a [u8]) -> Self {
        let mut instructions = Vec::new();
        if bytes.len() as u64 <= MAX_FUNCTION {
            let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
            while decoder.can_decode() {
                let instruction = decoder.decode();
                if instruction.is_invalid() {
                    break;
                }
                instructions.push(instruction);
            }
        }
        Self { bytes, address, instructions }
    }

    /// A whole function of a file.
    pub fn read<R: Source<'a>>(image: &Image<'a, R>, function: Function) -> Option<Self> {
        if function.size > MAX_FUNCTION {
            return None;
        }
        image.file_offset(function.address)?;
        Self::decode(function.address, image.bytes(function.address, function.size)?)
    }

    /// In order.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The instruction that starts at an address.
    pub fn at(&self, address: u64) -> Option<&Instruction> {
        let index = self.instructions.binary_search_by_key(&address, Instruction::ip).ok()?;
        self.instructions.get(index)
    }

    /// The bytes of one of its instructions.
    pub fn bytes_of(&self, instruction: &Instruction) -> &'a [u8] {
        usize::try_from(instruction.ip().wrapping_sub(self.address))
            .ok()
            .and_then(|at| self.bytes.get(at..)?.get(..instruction.len()))
            .unwrap_or_default()
    }

    /// Is the instruction emulated?
    pub fn emulates(&self, instruction: &Instruction) -> bool {
        emulated(self.bytes_of(instruction))
    }

    /// Of its first instruction.
    pub const fn address(&self) -> u64 {
        self.address
    }

    fn len(&self) -> usize {
        self.instructions.iter().map(Instruction::len).sum()
    }

    /// Where a probe that reads the first `arguments` arguments costs least: the first emulated instruction that every
    /// call passes once with the arguments still in their registers; else the first instruction.
    pub fn entry_point(&self, arguments: usize) -> Site {
        let kept = ARGUMENTS.get(..arguments).unwrap_or(&ARGUMENTS);
        self.first_emulated(kept)
    }

    /// Where a uretprobe costs least: as [`Self::entry_point`], but the return address still lies at the stack pointer.
    pub fn return_point(&self) -> Site {
        self.first_emulated(&[Register::RSP])
    }

    /// The first emulated instruction before which none of the registers is written and nothing branches.
    fn first_emulated(&self, kept: &[Register]) -> Site {
        let mut factory = InstructionInfoFactory::new();
        let mut is_first = true;
        for instruction in &self.instructions {
            if self.emulates(instruction) {
                // A jump to a `push` at the start begins another call.
                let is_start = is_first && instruction.mnemonic() == Mnemonic::Push;
                if !is_start && self.may_come_back(instruction.ip()) {
                    break;
                }
                return Site { address: instruction.ip(), emulated: true };
            }
            if instruction.flow_control() != FlowControl::Next || writes(&mut factory, instruction, kept) {
                break;
            }
            is_first &= instruction.mnemonic() == Mnemonic::Endbr64;
        }
        Site { address: self.address, emulated: self.instructions.first().is_some_and(|first| self.emulates(first)) }
    }

    /// Can a jump lead to where this address is passed a second time? Of an indirect one nobody knows.
    fn may_come_back(&self, address: u64) -> bool {
        let is_indirect = |instruction: &Instruction| {
            instruction.flow_control() == FlowControl::IndirectBranch && instruction.mnemonic() == Mnemonic::Jmp
        };
        self.instructions.iter().any(is_indirect)
            || self.jumps().any(|jump| (self.address..=address).contains(&jump.target))
    }

    /// Direct calls, in order.
    pub fn direct_calls(&self) -> impl Iterator<Item = Branch> {
        self.instructions.iter().filter(|instruction| instruction.is_call_near()).map(branch)
    }

    /// Direct jumps, with and without condition, in order. Those that leave the function are tail calls.
    pub fn jumps(&self) -> impl Iterator<Item = Branch> {
        self.instructions
            .iter()
            .filter(|instruction| instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near())
            .map(branch)
    }

    /// Does it call or jump to what an object says? (Not what the dynamic linker wrote.)
    pub fn has_indirect_calls(&self) -> bool {
        let is_indirect = |flow| matches!(flow, FlowControl::IndirectCall | FlowControl::IndirectBranch);
        self.instructions
            .iter()
            .any(|instruction| is_indirect(instruction.flow_control()) && slot(instruction).is_none())
    }

    /// The `ret` instructions, in order.
    pub fn returns(&self) -> impl Iterator<Item = u64> {
        self.instructions
            .iter()
            .filter(|instruction| instruction.flow_control() == FlowControl::Return)
            .map(Instruction::ip)
    }
}

fn branch(instruction: &Instruction) -> Branch {
    Branch { at: instruction.ip(), target: instruction.near_branch_target(), next: instruction.next_ip() }
}

fn writes(factory: &mut InstructionInfoFactory, instruction: &Instruction, registers: &[Register]) -> bool {
    factory.info(instruction).used_registers().iter().any(|used| {
        !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
            && registers.contains(&used.register().full_register())
    })
}

/// Instructions that one [`trace`] looks at, on all paths together.
const MAX_STEPS: usize = 20_000;
/// Times that one instruction is passed: paths that meet, and loops.
const MAX_VISITS: u8 = 6;
/// Paths that wait to be followed.
const MAX_WAYS: usize = 256;
/// Words of the stack frame that are kept track of.
const MAX_SLOTS: usize = 64;

/// What a register or a word of the stack is known to hold, in terms of the function's arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Value {
    #[default]
    Unknown,
    Constant(u64),
    /// An address in the frame, relative to the stack pointer at the function's start.
    Stack(i64),
    /// Pointer arithmetic: argument `argument`, or the pointer that lies at `base` bytes of where that points, plus
    /// `offset`.
    Address {
        argument: u8,
        base: Option<u16>,
        offset: i64,
    },
    /// What was read there, shifted right by `shift`; `mask` has the bits that are left of it, where they were.
    Data {
        argument: u8,
        base: Option<u16>,
        offset: i64,
        mask: u64,
        shift: u8,
    },
}

impl Value {
    /// An argument as it was passed, by its number from 0.
    pub const fn argument(argument: u8) -> Self {
        Self::Address { argument, base: None, offset: 0 }
    }

    fn plus(self, distance: i64) -> Self {
        match self {
            Self::Constant(value) => Self::Constant(value.wrapping_add_signed(distance)),
            Self::Stack(offset) => Self::Stack(offset.wrapping_add(distance)),
            Self::Address { argument, base, offset } => {
                Self::Address { argument, base, offset: offset.wrapping_add(distance) }
            }
            Self::Unknown | Self::Data { .. } => Self::Unknown,
        }
    }
}

/// What the registers hold before an instruction.
#[derive(Clone, Debug)]
pub struct State {
    /// 16 of general purpose, 32 vectors.
    registers: [Value; 48],
    slots: Vec<Slot>,
}

/// Bytes of the stack frame.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Relative to the stack pointer at the function's start.
    at: i64,
    size: u64,
    value: Value,
}

/// Where a function keeps a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// One that a call gives back.
    Register(Register),
    /// Bytes from the stack pointer.
    Stack(u16),
}

impl State {
    fn at_start() -> Self {
        let mut state = Self { registers: [Value::Unknown; 48], slots: Vec::new() };
        for (number, register) in (0..).zip(ARGUMENTS) {
            state.set(register, Value::argument(number));
        }
        state.set(Register::RSP, Value::Stack(0));
        state
    }

    /// Of a register, whichever part of it is named.
    pub fn get(&self, register: Register) -> Value {
        register_index(register).and_then(|index| self.registers.get(index)).copied().unwrap_or_default()
    }

    fn set(&mut self, register: Register, value: Value) {
        if let Some(kept) = register_index(register).and_then(|index| self.registers.get_mut(index)) {
            *kept = value;
        }
    }

    /// The address that a memory operand names.
    pub fn place(&self, instruction: &Instruction) -> Value {
        if instruction.is_ip_rel_memory_operand() {
            return Value::Constant(instruction.ip_rel_memory_address());
        }
        if instruction.memory_index() != Register::None || instruction.has_segment_prefix() {
            return Value::Unknown;
        }
        self.get(instruction.memory_base()).plus(instruction.memory_displacement64() as i64)
    }

    fn load(&self, place: Value, size: usize) -> Value {
        match place {
            Value::Stack(offset) => {
                let slot = self.slots.iter().find(|slot| slot.at == offset && size as u64 <= slot.size);
                slot.map_or(Value::Unknown, |slot| slot.value)
            }
            Value::Address { argument, base: None, offset } if size == 8 => u16::try_from(offset)
                .map_or(Value::Unknown, |base| Value::Address { argument, base: Some(base), offset: 0 }),
            Value::Address { argument, base, offset } => {
                let mask = if size < 8 { (1 << (8 * size)) - 1 } else { u64::MAX };
                Value::Data { argument, base, offset, mask, shift: 0 }
            }
            Value::Unknown | Value::Constant(_) | Value::Data { .. } => Value::Unknown,
        }
    }

    fn store(&mut self, place: Value, size: usize, value: Value) {
        let Value::Stack(at) = place else { return };
        let size = size as u64;
        let overlaps = |slot: &Slot| {
            let distance = slot.at.abs_diff(at);
            if slot.at < at { distance < slot.size } else { distance < size }
        };
        self.slots.retain(|slot| !overlaps(slot));
        if self.slots.len() < MAX_SLOTS {
            self.slots.push(Slot { at, size, value });
        }
    }

    /// Everywhere that `value`, or at least its low `size` bytes, survives a call.
    pub fn kept(&self, value: Value, size: u64) -> Vec<Place> {
        let registers = KEPT.into_iter().filter(|register| *register != Register::RSP && self.get(*register) == value);
        let mut places: Vec<Place> = registers.map(Place::Register).collect();
        if let Value::Stack(top) = self.get(Register::RSP) {
            let slots = self.slots.iter().filter(|slot| slot.value == value && slot.size >= size);
            places.extend(slots.filter_map(|slot| {
                let distance = u16::try_from(slot.at.checked_sub(top)?).ok()?;
                Some(Place::Stack(distance))
            }));
        }
        places
    }
}

fn register_index(register: Register) -> Option<usize> {
    let full = register.full_register();
    if full.is_gpr64() {
        Some(full.number())
    } else if full.is_vector_register() {
        16usize.checked_add(full.number())
    } else {
        None
    }
}

/// Follows all paths through a function from its start and shows each instruction with what the registers hold before
/// it. Both ways of each branch are taken, whether they can be or not; a call gives back the registers that the calling
/// convention keeps. Bounded: what is shown happens on a path, but not every path may be shown.
pub fn trace(code: &Code<'_>, show: &mut dyn FnMut(&Instruction, &State)) {
    let mut factory = InstructionInfoFactory::new();
    let mut visits: HashMap<u64, u8> = HashMap::new();
    let mut ways = vec![(code.address, State::at_start())];
    let mut steps = 0;
    while let Some((mut address, mut state)) = ways.pop() {
        while let Some(instruction) = code.at(address) {
            let visited = visits.entry(address).or_default();
            if *visited >= MAX_VISITS || steps >= MAX_STEPS {
                break;
            }
            *visited += 1;
            steps += 1;
            show(instruction, &state);
            address = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Next => step(&mut factory, instruction, &mut state),
                FlowControl::UnconditionalBranch => address = instruction.near_branch_target(),
                FlowControl::ConditionalBranch if ways.len() < MAX_WAYS => {
                    ways.push((instruction.near_branch_target(), state.clone()));
                }
                FlowControl::ConditionalBranch => {}
                FlowControl::Call | FlowControl::IndirectCall => after_call(&mut state),
                _ => break,
            }
        }
    }
}

/// Registers that the calling convention keeps over a call.
const KEPT: [Register; 7] =
    [Register::RBX, Register::RSP, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// A call gives back the registers that the calling convention keeps.
fn after_call(state: &mut State) {
    let values = KEPT.map(|register| state.get(register));
    state.registers = [Value::Unknown; 48];
    for (register, value) in KEPT.into_iter().zip(values) {
        state.set(register, value);
    }
}

fn step(factory: &mut InstructionInfoFactory, instruction: &Instruction, state: &mut State) {
    let (first, second) = (instruction.op0_kind(), instruction.op1_kind());
    let target = instruction.op0_register();
    match instruction.mnemonic() {
        Mnemonic::Mov
        | Mnemonic::Movzx
        | Mnemonic::Movsx
        | Mnemonic::Movsxd
        | Mnemonic::Movups
        | Mnemonic::Movaps
        | Mnemonic::Movupd
        | Mnemonic::Movapd
        | Mnemonic::Movdqu
        | Mnemonic::Movdqa
        | Mnemonic::Vmovups
        | Mnemonic::Vmovaps
        | Mnemonic::Vmovdqu
        | Mnemonic::Vmovdqa => {
            let value = match second {
                OpKind::Register => state.get(instruction.op1_register()),
                OpKind::Memory => state.load(state.place(instruction), instruction.memory_size().size()),
                _ => instruction.try_immediate(1).map_or(Value::Unknown, Value::Constant),
            };
            if first == OpKind::Memory {
                state.store(state.place(instruction), instruction.memory_size().size(), value);
            } else if target.size() < 4 {
                // The rest of the register is not known.
                state.set(target, Value::Unknown);
            } else {
                state.set(target, value);
            }
        }
        Mnemonic::Lea => state.set(target, state.place(instruction)),
        Mnemonic::Xor
            if first == OpKind::Register && second == OpKind::Register && target == instruction.op1_register() =>
        {
            state.set(target, Value::Constant(0));
        }
        Mnemonic::Add | Mnemonic::Sub | Mnemonic::And | Mnemonic::Shr if first == OpKind::Register => {
            let value = instruction.try_immediate(1).map_or(Value::Unknown, |immediate| {
                arithmetic(instruction.mnemonic(), state.get(target), immediate, target.size())
            });
            state.set(target, value);
        }
        Mnemonic::Push => {
            let value = if first == OpKind::Register { state.get(target) } else { Value::Unknown };
            let top = state.get(Register::RSP).plus(-8);
            state.set(Register::RSP, top);
            state.store(top, 8, value);
        }
        Mnemonic::Pop if first == OpKind::Register => pop(state, target),
        Mnemonic::Leave => {
            let frame = state.get(Register::RBP);
            state.set(Register::RSP, frame);
            pop(state, Register::RBP);
        }
        Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Nop | Mnemonic::Endbr64 => {}
        _ => {
            let written: Vec<Register> = factory
                .info(instruction)
                .used_registers()
                .iter()
                .filter(|used| !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead))
                .map(iced_x86::UsedRegister::register)
                .collect();
            for register in written {
                state.set(register, Value::Unknown);
            }
            if (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory) {
                let place = state.place(instruction);
                state.store(place, instruction.memory_size().size(), Value::Unknown);
            }
        }
    }
}

fn pop(state: &mut State, target: Register) {
    let top = state.get(Register::RSP);
    let value = state.load(top, 8);
    state.set(Register::RSP, top.plus(8));
    state.set(target, value);
}

/// Of a register of `size` bytes and an immediate operand.
fn arithmetic(mnemonic: Mnemonic, value: Value, immediate: u64, size: usize) -> Value {
    match (mnemonic, value) {
        (Mnemonic::Add, Value::Data { .. }) | (Mnemonic::Sub, Value::Data { .. }) => Value::Unknown,
        (Mnemonic::Add, _) if size == 8 => value.plus(immediate as i64),
        (Mnemonic::Sub, _) if size == 8 => value.plus((immediate as i64).wrapping_neg()),
        // What is above a part of a register stays; all that is kept track of must be in that part.
        (_, Value::Data { mask, shift, .. }) if size < 4 && mask.checked_shr(u32::from(shift)).unwrap_or(0) > 0xff => {
            Value::Unknown
        }
        (Mnemonic::And, Value::Data { argument, base, offset, mask, shift }) => {
            let mask = mask & immediate.checked_shl(u32::from(shift)).unwrap_or(0);
            Value::Data { argument, base, offset, mask, shift }
        }
        (Mnemonic::Shr, Value::Data { argument, base, offset, mask, shift }) if immediate < 64 => {
            let shift = shift.saturating_add(immediate as u8).min(64);
            let gone = 1u64.checked_shl(u32::from(shift)).map_or(u64::MAX, |bit| bit - 1);
            Value::Data { argument, base, offset, mask: mask & !gone, shift }
        }
        _ => Value::Unknown,
    }
}

/// Calls and tail calls of a function that are looked at.
const MAX_CALLEES: usize = 256;

/// Where a call leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To this address.
    Function(u64),
    /// To what the dynamic linker wrote at this address.
    Slot(u64),
}

/// A call, or a jump out of the function, to what the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Callee {
    pub to: To,
    /// What the registers of the arguments hold.
    pub arguments: [Value; 6],
}

/// What a function calls and what it passes, once for each path that differs.
pub fn callees(code: &Code<'_>) -> Vec<Callee> {
    let mut callees = Vec::new();
    trace(code, &mut |instruction, state| {
        let Some(to) = leads_to(code, instruction) else { return };
        let callee = Callee { to, arguments: ARGUMENTS.map(|register| state.get(register)) };
        if callees.len() < MAX_CALLEES && !callees.contains(&callee) {
            callees.push(callee);
        }
    });
    callees
}

fn leads_to(code: &Code<'_>, instruction: &Instruction) -> Option<To> {
    let target = instruction.near_branch_target();
    match instruction.flow_control() {
        FlowControl::Call if instruction.is_call_near() => Some(To::Function(target)),
        FlowControl::UnconditionalBranch if code.at(target).is_none() => Some(To::Function(target)),
        FlowControl::IndirectCall | FlowControl::IndirectBranch => slot(instruction).map(To::Slot),
        _ => None,
    }
}

/// The place beside the code that an indirect call or jump reads its target from.
fn slot(instruction: &Instruction) -> Option<u64> {
    instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address())
}

/// The name of an imported function that a call leads to, directly or through a stub of procedure linkage.
pub fn imported<'a, R: Source<'a>>(image: &Image<'a, R>, to: To) -> Option<&'a [u8]> {
    let at = match to {
        To::Slot(at) => at,
        To::Function(address) => {
            let stub = Code::prefix(address, image.bytes(address, 16)?);
            let jump = stub.instructions().iter().find(|instruction| instruction.mnemonic() != Mnemonic::Endbr64)?;
            if jump.mnemonic() != Mnemonic::Jmp {
                return None;
            }
            slot(jump)?
        }
    };
    image.imported(at)
}

#[cfg(test)]
mod tests;
