/** Timers as descriptors: timerfd_create(2), CLOCK_MONOTONIC, one shot. */
import { declare, result, Scratch } from './libc.ts'

const c = {
  create: declare<(clock: number, flags: number) => number>('int timerfd_create(int, int)'),
  settime: declare<(fd: number, flags: number, spec: number, old: number) => number>(
    'int timerfd_settime(int, int, uintptr_t, uintptr_t)',
  ),
}
const CLOCK_MONOTONIC = 1
const TFD_NONBLOCK = 0o4000
const TFD_CLOEXEC = 0o2000000
/** struct itimerspec: interval, then value; each seconds and nanoseconds. */
const spec = new Scratch(32)

/** A non-blocking timer descriptor; it is readable (8 bytes) once it has fired. */
export function timerfd(): number {
  return result(c.create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC))
}

/** Fire once, `ms` from now (fractions count); 0 disarms. */
export function setTimer(fd: number, ms: number): number {
  const seconds = Math.floor(ms / 1000)
  spec.setWord(16, seconds)
  spec.setWord(24, Math.round((ms - seconds * 1000) * 1e6))
  return result(c.settime(fd, 0, spec.address, 0))
}
