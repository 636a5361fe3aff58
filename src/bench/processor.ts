/**
 * Which processor this is, as precisely as its kernel says.
 *
 * Theory. The model's name alone does not tell: virtual machines call every generation "AMD EPYC" or "Intel Xeon Processor", and what copies and
 * system calls cost differs by two between generations. Family and model (CPUID leaf 1; /proc/cpuinfo of x86) or implementer and part (MIDR_EL1; of ARM) do.
 *
 * Owns: the name. Pure apart from reading /proc/cpuinfo.
 */
import { readFileSync } from 'node:fs'
import { cpus } from 'node:os'

const TELLING = ['cpu family', 'model', 'CPU implementer', 'CPU part'] as const

/** @param cpuinfo /proc/cpuinfo; '' where there is none @returns e.g. `AMD EPYC (cpu family 23, model 1)` */
export function processor(cpuinfo = readCpuinfo(), name = cpus()[0]?.model.trim() || 'unknown'): string {
  const fields = new Map<string, string>()
  for (const line of cpuinfo.split('\n')) {
    const [key, value] = line.split(/\s*:\s*/, 2)
    if (key && value !== undefined && !fields.has(key)) fields.set(key, value)
  }
  const told = TELLING.filter((key) => fields.has(key)).map((key) => `${key} ${fields.get(key)}`)
  return told.length > 0 ? `${name} (${told.join(', ')})` : name
}

function readCpuinfo(): string {
  try {
    return readFileSync('/proc/cpuinfo', 'latin1')
  } catch {
    return ''
  }
}
