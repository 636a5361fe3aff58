/** A process that resolves or builds an image, for tests that kill it or run several: argv is DIR VERB NAME. Each step is a line; the last is the id. */
import { Images } from '../../src/images/index.ts'

const [dir, verb, name] = process.argv.slice(2)
const images = new Images(dir, () => {})
const say = (text: string): void => void process.stdout.write(`step ${text}\n`)
const done = verb === 'build' ? await images.build(name, say) : await images.resolve(name, say)
process.stdout.write(`id ${done.id}\n`)
