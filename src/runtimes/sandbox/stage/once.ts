/** What a VM is given once, when it is made, and keeps from then on. */
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** A seed that was interrupted is made again; one that was finished is the VM's own and stays. */
export function seedOnce(dir: string, seed: () => void): void {
  const mark = join(dir, 'fs', 'seeded')
  if (existsSync(mark)) return
  rmSync(join(dir, 'fs'), { recursive: true, force: true })
  mkdirSync(join(dir, 'fs'), { recursive: true })
  seed()
  writeFileSync(mark, '')
}
