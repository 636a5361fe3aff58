/** The four libc functions this package calls, through koffi. Results are ≥ 0 or −errno; addresses are Numbers. */
import koffi from 'koffi'

type Call = (...args: (number | string)[]) => number
const libc = koffi.load(null)
const declare = (prototype: string): Call => {
  const f = libc.func(prototype) as unknown as Call
  return (...args) => {
    const r = f(...args)
    return r < 0 ? -koffi.errno() : r
  }
}

export const open = declare('int open(const char *, int, unsigned int)')
export const close = declare('int close(int)')
export const socket = declare('int socket(int, int, int)')
/** With a pointer, or with an integer in its place. */
export const ioctl = declare('int ioctl(int, unsigned long, uintptr_t)')

export const addressOf = (bytes: Uint8Array): number => Number(koffi.address(bytes))
