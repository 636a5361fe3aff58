/**
 * Boots in a row: do VMs always come up? `node bench/e2e/boots.ts [--count 50] [--parallel 3] [--image tiny] [--runtime qemu] [--templates]`, as root.
 *
 * Each VM is created on the userspace backend, runs a command, and is destroyed; cold ones unless --templates. Says how long each took, which ones
 * needed a second way (a retry on q35, a template that did not fit), and ends with 1 when one did not come up. At most 200.
 */
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { Environment } from '../../src/runtimes/conformance/environment.ts'
import { runtimes } from '../../src/runtimes/index.ts'

const MOST = 200

export interface Boots {
  readonly count: number
  readonly parallel: number
  readonly runtime: string
  readonly image?: string
  readonly templates: boolean
}

export interface BootsReport {
  /** Milliseconds from the wish to the end of the first command, in the order of their ends. */
  readonly took: readonly number[]
  readonly failed: readonly string[]
  /** What the runtime had to mend on its way. */
  readonly warnings: readonly string[]
}

export async function boots(o: Boots, tell: (line: string) => void = () => {}): Promise<BootsReport> {
  const descriptor = runtimes.find((r) => r.name === o.runtime)
  if (descriptor === undefined) throw new Error(`there is no runtime ${o.runtime}`)
  process.env.NOID_TEMPLATES = o.templates ? '1' : '0'
  const took: number[] = []
  const failed: string[] = []
  const warnings: string[] = []
  const e = await Environment.open(descriptor, {
    ...(o.image === undefined ? {} : { image: o.image }),
    log: (line) => {
      if (/^(warn|error):/.test(line)) warnings.push(line)
    },
  })
  try {
    let next = 0
    const worker = async (): Promise<void> => {
      while (next < Math.min(o.count, MOST)) {
        const n = ++next
        const begin = performance.now()
        try {
          const vm = await e.up()
          const r = await e.run(vm, ['hostname'])
          if (r.code !== 0 || r.out.trim() !== vm.spec.name) throw new Error(`it calls itself ${r.out}${r.err}`)
          took.push(performance.now() - begin)
          tell(`${n}: ${Math.round(performance.now() - begin)} ms`)
          await e.down(vm)
        } catch (error) {
          failed.push((error as Error).message)
          tell(`${n}: FAILED: ${(error as Error).message}`)
        }
      }
    }
    await Promise.all(Array.from({ length: o.parallel }, worker))
  } finally {
    await e.close()
  }
  return { took, failed, warnings }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const { values } = parseArgs({
    options: {
      count: { type: 'string', default: '50' },
      parallel: { type: 'string', default: '3' },
      image: { type: 'string', default: 'tiny' },
      runtime: { type: 'string', default: 'qemu' },
      templates: { type: 'boolean', default: false },
    },
  })
  const r = await boots(
    {
      count: Number(values.count),
      parallel: Number(values.parallel),
      runtime: values.runtime,
      templates: values.templates,
      ...(values.runtime === 'qemu' ? { image: values.image } : {}),
    },
    (line) => process.stdout.write(`${line}\n`),
  )
  const sorted = r.took.toSorted((a, b) => a - b)
  const at = (q: number): number => Math.round(sorted[Math.floor((sorted.length - 1) * q)] ?? Number.NaN)
  for (const w of r.warnings) process.stdout.write(`${w}\n`)
  process.stdout.write(
    `${r.took.length} came up, ${r.failed.length} did not; ${r.warnings.length} warnings; median ${at(0.5)} ms, 90 % ${at(0.9)} ms, slowest ${at(1)} ms\n`,
  )
  process.exit(r.failed.length === 0 ? 0 : 1)
}
