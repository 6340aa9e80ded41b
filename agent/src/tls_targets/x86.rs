//! Decoding of x86-64 functions: where a probe costs little, what a function calls, and what its registers hold on the
//! way there. Decodes from a function's start and never names an address that is not the start of an instruction.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};
use object::ReadRef;

use super::elf::{Function, Image};

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
/// `push_setup_xol_ops`)? Else it is single-stepped, which costs a second trap. Only the plain forms: any prefix but the
/// one of `r8` to `r15` changes the answer. Of the nops only the one of one byte: on kernels since 6.18 the five-byte one
/// is replaced by a call, which overwrites memory below the stack pointer that leaf functions use.
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
    pub fn read<R: ReadRef<'a>>(image: &Image<'a, R>, function: Function) -> Option<Self> {
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
                // What jumps to the first instruction begins another call.
                if !is_first && self.may_come_back(instruction.ip()) {
                    break;
                }
                return Site { address: instruction.ip(), emulated: true };
            }
            if instruction.flow_control() != FlowControl::Next || writes(&mut factory, instruction, kept) {
                break;
            }
            is_first &= instruction.mnemonic() == Mnemonic::Endbr64;
        }
        Site { address: self.address, emulated: false }
    }

    /// Can a jump lead to where this address is passed a second time? Of an indirect one nobody knows.
    fn may_come_back(&self, address: u64) -> bool {
        let is_indirect = |instruction: &Instruction| {
            instruction.flow_control() == FlowControl::IndirectBranch && instruction.mnemonic() == Mnemonic::Jmp
        };
        self.instructions.iter().any(is_indirect)
            || self.jumps().any(|jump| jump.target > self.address && jump.target <= address)
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
